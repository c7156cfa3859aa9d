"""Retrieval by the workers of a Ray that encrypts its connections: in a process of its own, for Ray reads it once."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.retrieval.conftest import DIMENSION, make_certificates

pytestmark = pytest.mark.xdist_group("ray")
ray = pytest.importorskip("ray")

RETRIEVE = f"""
import ssl
import sys
from pathlib import Path

import numpy as np

from ragstone.knowledge.source import KnowledgeSource
from ragstone.processes.processes import OneProcess
from ragstone.processes.ray_cluster import RayCluster
from ragstone.retrieval.local import LocalRetriever
from ragstone.retrieval.location import SourceLocation
from ragstone.retrieval.ray_retriever import InRayWorkers, RayRetriever

folder = sys.argv[1]
asked = np.random.default_rng(0).normal(size=(8, {DIMENSION})).astype(np.float32)
expected = LocalRetriever(KnowledgeSource(Path(folder))).retrieve(asked, 5)
with RayCluster("local"):
    info, retriever = InRayWorkers(OneProcess(), timeout=200).open(SourceLocation(folder))
    # As from a host where no worker is, to which passages are sent.
    found = RayRetriever(retriever._crews, info, [], None).retrieve(asked, 5)
    (connection,) = retriever._crews[0]._lines[0]._idle
    assert isinstance(connection._socket, ssl.SSLSocket)
    retriever.close()
np.testing.assert_array_equal(found.ids, expected.ids)
np.testing.assert_array_equal(found.vectors, expected.vectors)
assert found.passages == expected.passages
print("the same")
"""


def test_connections_are_encrypted_as_rays_are(large_source: Path, tmp_path: Path) -> None:
    certificates = make_certificates(tmp_path, "127.0.0.1", "localhost", ray.util.get_node_ip_address())
    done = subprocess.run(
        [sys.executable, "-c", RETRIEVE, str(large_source)],
        env={**os.environ, **certificates},
        capture_output=True,
        text=True,
        timeout=240,
    )
    assert done.returncode == 0 and done.stdout.splitlines()[-1] == "the same", done.stderr
