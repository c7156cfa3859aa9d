from __future__ import annotations

import numpy as np
import pytest

from ragstone.index.exact import exact_search, recall


def brute_force(vectors: np.ndarray, queries: np.ndarray, n: int) -> list[list[int]]:
    """Ids by score, then by id, one query at a time."""
    scores = queries @ vectors.T
    return [sorted(range(len(vectors)), key=lambda i: (-row[i], i))[:n] for row in scores]


@pytest.mark.parametrize("chunk", [1, 7, 64, 500])
@pytest.mark.parametrize("n", [1, 5, 20])
def test_exact_search_is_brute_force(chunk: int, n: int) -> None:
    rng = np.random.default_rng(0)
    vectors = rng.standard_normal((500, 8)).astype(np.float32)
    queries = rng.standard_normal((9, 8)).astype(np.float32)
    scores, ids = exact_search((vectors[i : i + chunk] for i in range(0, 500, chunk)), queries, n)
    assert ids.tolist() == brute_force(vectors, queries, n)
    np.testing.assert_allclose(scores, np.take_along_axis(queries @ vectors.T, ids, axis=1), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("chunk", [3, 10, 200])
def test_equal_scores_come_in_order_of_ids(chunk: int) -> None:
    # Small whole numbers: most scores are shared by many vectors, and they are exact.
    rng = np.random.default_rng(1)
    vectors = rng.integers(-1, 2, (200, 4)).astype(np.float32)
    queries = rng.integers(-1, 2, (12, 4)).astype(np.float32)
    _, ids = exact_search([vectors[i : i + chunk] for i in range(0, 200, chunk)], queries, 11)
    assert ids.tolist() == brute_force(vectors, queries, 11)


def test_fewer_vectors_than_asked_for() -> None:
    vectors = np.eye(3, dtype=np.float32)
    scores, ids = exact_search([vectors], np.array([[3, 1, 2]], np.float32), 5)
    assert ids.tolist() == [[0, 2, 1, -1, -1]]
    assert scores.tolist() == [[3, 2, 1, -np.inf, -np.inf]]
    scores, ids = exact_search([], np.ones((2, 3), np.float32), 2)
    assert ids.tolist() == [[-1, -1], [-1, -1]]


def test_recall_counts_what_was_found_among_the_nearest() -> None:
    exact = np.array([[9, 8, 7, 6], [5, 4, 3, 2]], np.float32)
    found = np.array([[9, 7, 6, 1], [5, 4, 3, 2]], np.float32)
    assert recall(exact, exact, 4) == 1
    assert recall(found, exact, 2) == 3 / 4
    assert recall(found, exact, 4) == 7 / 8
    assert recall(np.full((2, 4), -np.inf, np.float32), exact, 4) == 0


def test_recall_takes_a_twin_for_the_vector_itself() -> None:
    assert recall(np.array([[9, 8.00001]], np.float32), np.array([[9, 8]], np.float32), 2) == 1


def test_recall_asks_for_no_more_than_there_is() -> None:
    exact = np.array([[2, 1, -np.inf]], np.float32)
    assert recall(exact, exact, 3) == 1
    assert recall(np.array([[2, -np.inf, -np.inf]], np.float32), exact, 3) == 0.5
