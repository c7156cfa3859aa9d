"""Exact search of a part: of a map where there is one, else in memory, if there is enough."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from ragstone.errors import InputError
from ragstone.index.exact import exact_search
from ragstone.index.searcher import best_of
from ragstone.knowledge.source import KnowledgeSource
from ragstone.memory import Memory
from ragstone.retrieval import part
from ragstone.retrieval.part import exact_part
from tests.retrieval.conftest import UNMAPPED_DIMENSION, UNMAPPED_ROWS, write_unmapped_source

BYTES = 4 * UNMAPPED_ROWS * UNMAPPED_DIMENSION


@pytest.fixture
def unmapped_source(tmp_path: Path) -> KnowledgeSource:
    return KnowledgeSource(write_unmapped_source(tmp_path / "nq"))


def set_memory(monkeypatch: pytest.MonkeyPatch, total: int, free: int) -> None:
    monkeypatch.setattr(part, "memory", lambda: Memory(total, free))


def test_parts_in_memory_that_just_fit(unmapped_source: KnowledgeSource, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each part where as much is free as it takes; together they find what is nearest."""
    set_memory(monkeypatch, BYTES, BYTES // 2)
    asked = np.random.default_rng(1).normal(size=(5, UNMAPPED_DIMENSION)).astype(np.float32)
    parts = [exact_part(unmapped_source, part, 2, "cpu", workers_here=2) for part in range(2)]
    _, ids = best_of([part.search(asked, 4) for part in parts if part is not None], 4)
    np.testing.assert_array_equal(ids, exact_search(unmapped_source.store.vector_chunks(), asked, 4)[1])


@pytest.mark.parametrize(("total", "free"), [(BYTES, BYTES // 2 - 1), (BYTES - 1, BYTES // 2)], ids=["it", "all"])
def test_parts_that_do_not_fit_are_refused(
    unmapped_source: KnowledgeSource, monkeypatch: pytest.MonkeyPatch, total: int, free: int
) -> None:
    """One for which too little is free, and two for which a host is too small."""
    set_memory(monkeypatch, total, free)
    with pytest.raises(InputError, match=r"^The vectors of .* cannot be mapped: exact .* in each of 2 processes on "):
        exact_part(unmapped_source, 0, 2, "cpu", workers_here=2)


def test_what_is_mapped_takes_no_memory(large_source: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    set_memory(monkeypatch, 0, 0)
    assert exact_part(KnowledgeSource(large_source), 0, 2, "cpu", workers_here=2) is not None
