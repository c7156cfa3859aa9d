"""Fusion of two rankings against cases worked by hand."""

from __future__ import annotations

import numpy as np
import pytest

from ragstone.retrieval.fusion import common_scale, reciprocal_rank_fusion


def rankings(*lists: list[int]) -> list[np.ndarray]:
    return [np.array(ids, dtype=np.int64) for ids in lists]


def test_reciprocal_ranks() -> None:
    """7 stands second and first, 5 first and fourth, 9 third and third, 3 only in the second, 4 only in the first."""
    ids, scores = reciprocal_rank_fusion(rankings([5, 7, 9, 4], [7, 3, 9, 5]))
    assert ids.tolist() == [7, 5, 9, 3, 4]
    expected = [1 / 62 + 1 / 61, 1 / 61 + 1 / 64, 1 / 63 + 1 / 63, 1 / 62, 1 / 64]
    assert scores.tolist() == pytest.approx(expected, rel=1e-6)
    assert scores[0] == pytest.approx(0.0325225, abs=1e-7)


def test_equal_ranks_come_in_the_order_of_their_rankings() -> None:
    ids, _ = reciprocal_rank_fusion(rankings([8, 2], [1, 9]))
    assert ids.tolist() == [8, 1, 2, 9]
    assert reciprocal_rank_fusion(rankings([1, 2], [2, 1]))[0].tolist() == [1, 2]


def test_a_ranking_that_is_empty_changes_nothing() -> None:
    assert reciprocal_rank_fusion(rankings([4, 1, 3], []))[0].tolist() == [4, 1, 3]
    ids, scores = reciprocal_rank_fusion(rankings([], []))
    assert (ids.tolist(), scores.tolist()) == ([], [])


def test_common_scale() -> None:
    """Deviations 1 and 4: BM25's scores shrink to a quarter."""
    dense, bm25 = np.array([1.0, 3.0], dtype=np.float32), np.array([10.0, 2.0], dtype=np.float32)
    assert common_scale(dense, bm25) == pytest.approx(0.25)
    assert common_scale(dense, np.zeros(2, dtype=np.float32)) == 1
    assert common_scale(np.ones(2, dtype=np.float32), bm25) == 1
    assert common_scale(dense[:0], bm25[:0]) == 1
