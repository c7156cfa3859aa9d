"""A knowledge source that is large enough to be divided: random vectors, texts that tell their row."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import trustme

from ragstone.index.exact_range import BLOCK
from ragstone.index.vector_index import build_index
from ragstone.knowledge.source import INDEX_NAME, PASSAGES_NAME
from ragstone.knowledge.store import PassageStore, PassageWriter
from ragstone.knowledge.wiki_dpr import index_file, passages_folder

ROWS = 3 * BLOCK
DIMENSION = 48
UNMAPPED_ROWS, UNMAPPED_DIMENSION = 2 * BLOCK, 8


def write_source(folder: Path, rows: int, dimension: int) -> Path:
    generator = np.random.default_rng(0)
    with PassageWriter(folder / PASSAGES_NAME, dimension) as writer:
        for start in range(0, rows, 1000):
            numbers = range(start, min(rows, start + 1000))
            vectors = generator.normal(size=(len(numbers), dimension)).astype(np.float32)
            writer.write([f"title {n}" for n in numbers], [f"täxt of passage {n}" for n in numbers], vectors)
    store = PassageStore(folder / PASSAGES_NAME)
    build_index(store.vector_chunks, rows, dimension, "Flat", folder / INDEX_NAME)
    return folder


def write_unmapped_source(folder: Path) -> Path:
    """Passages in parquet with an index that is not flat: their vectors stand nowhere as they are searched."""
    folder.mkdir()
    vectors = np.random.default_rng(0).normal(size=(UNMAPPED_ROWS, UNMAPPED_DIMENSION)).astype(np.float32)
    texts = [f"passage {row}" for row in range(UNMAPPED_ROWS)]
    embeddings = pa.array(vectors.tolist(), pa.list_(pa.float32()))
    table = pa.table({"title": texts, "text": texts, "embeddings": embeddings})
    pq.write_table(table, folder / "passages.parquet", row_group_size=30)
    build_index(lambda: iter([vectors]), *vectors.shape, "HNSW4,Flat", folder.parent / INDEX_NAME)
    return folder


def write_published(cache: Path) -> Path:
    """wiki_dpr's compressed index in a cache of the hub's, 3 MiB of it; the index's path."""
    repository = cache / "datasets--facebook--wiki_dpr"
    (repository / "refs").mkdir(parents=True)
    (repository / "refs" / "main").write_text("abc", encoding="utf-8")
    snapshot = repository / "snapshots" / "abc"
    passages = snapshot / passages_folder("nq")
    passages.parent.mkdir(parents=True)
    write_unmapped_source(passages)
    index = snapshot / index_file("nq", "compressed")
    index.parent.mkdir()
    with index.open("wb") as file:
        file.truncate(3 * 2**20)
    return index


@pytest.fixture(scope="session")
def large_source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_source(tmp_path_factory.mktemp("large") / "source", ROWS, DIMENSION)


def make_certificates(folder: Path, *hosts: str) -> dict[str, str]:
    """An authority and a certificate of it for `hosts`; the environment in which Ray encrypts with them."""
    authority = trustme.CA()
    own = authority.issue_cert(*hosts)
    own.private_key_and_cert_chain_pem.write_to_path(folder / "host.pem")
    authority.cert_pem.write_to_path(folder / "authority.pem")
    host = str(folder / "host.pem")
    return {
        "RAY_USE_TLS": "1",
        "RAY_TLS_SERVER_CERT": host,
        "RAY_TLS_SERVER_KEY": host,
        "RAY_TLS_CA_CERT": str(folder / "authority.pem"),
    }


@pytest.fixture(scope="session")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    return make_certificates(tmp_path_factory.mktemp("certificates"), "127.0.0.1", "localhost")
