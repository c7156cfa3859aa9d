"""Retrieval in process against a search written out in numpy."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from ragstone.knowledge.source import KnowledgeSource
from ragstone.retrieval.local import LocalRetriever
from ragstone.types import NO_PASSAGE
from tests.conftest import DOCUMENTS


@pytest.fixture
def retriever(source_folder: Path) -> LocalRetriever:
    return LocalRetriever(KnowledgeSource(source_folder))


def _queries(retriever: LocalRetriever, count: int) -> np.ndarray:
    return np.random.default_rng(0).normal(size=(count, retriever.source.dimension)).astype(np.float32)


@pytest.mark.parametrize("n_docs", [1, 3, 6])
def test_nearest_passages_best_first(retriever: LocalRetriever, n_docs: int) -> None:
    vectors = retriever.source.store.vectors(range(len(DOCUMENTS)))
    queries = _queries(retriever, 5)
    found = retriever.retrieve(queries, n_docs)
    expected = np.argsort(-(queries @ vectors.T), axis=1)[:, :n_docs]
    np.testing.assert_array_equal(found.ids, expected)
    np.testing.assert_array_equal(found.vectors, vectors[expected])
    assert [[(p.title, p.text) for p in row] for row in found.passages] == [
        [DOCUMENTS[i] for i in row] for row in expected
    ]
    assert [[p.id for p in row] for row in found.passages] == expected.tolist()
    assert found.mask.all()
    assert (found.ids.dtype, found.vectors.dtype, len(found)) == (np.int64, np.float32, 5)


def test_slots_for_which_there_is_no_passage(retriever: LocalRetriever) -> None:
    found = retriever.retrieve(_queries(retriever, 2), 9)
    assert found.ids.shape == (2, 9)
    assert (found.ids[:, 6:] == -1).all()
    assert (found.vectors[:, 6:] == 0).all()
    assert all(row[6:] == [NO_PASSAGE] * 3 for row in found.passages)
    np.testing.assert_array_equal(found.mask, [[True] * 6 + [False] * 3] * 2)


def test_no_questions(retriever: LocalRetriever) -> None:
    found = retriever.retrieve(_queries(retriever, 0), 3)
    assert found.ids.shape == (0, 3)
    assert found.vectors.shape == (0, 3, retriever.source.dimension)
    assert (found.passages, len(found)) == ([], 0)


def test_a_question_whose_ids_are_all_missing_leaves_the_others_alone(retriever: LocalRetriever) -> None:
    """Not a number is near nothing: the index gives no id for it."""
    queries = _queries(retriever, 3)
    alone = retriever.retrieve(queries[[0, 2]], 2)
    queries[1] = np.nan
    found = retriever.retrieve(queries, 2)
    assert found.mask.tolist() == [[True, True], [False, False], [True, True]]
    assert found.passages[1] == [NO_PASSAGE, NO_PASSAGE]
    np.testing.assert_array_equal(found.ids[[0, 2]], alone.ids)
    assert [found.passages[0], found.passages[2]] == alone.passages
