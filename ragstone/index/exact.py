"""Exact search by brute force: slow, right, and what every index is measured against.

Shapes: B queries, N results, D dimensions.
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np

from ragstone.types import FloatArray, IntArray


def exact_search(chunks: Iterable[FloatArray], queries: FloatArray, n: int) -> tuple[FloatArray, IntArray]:
    """The `n` vectors of largest inner product for each of `queries` [B, D], best first.

    `chunks` are the vectors [*, D] in order of their ids, so that a corpus larger than memory can be searched. Equal
    scores are ordered by id. Where there are fewer than `n` vectors, scores are -inf and ids -1.

    Returns:
        scores [B, N] and ids [B, N].
    """
    scores = np.full((len(queries), n), -np.inf, dtype=np.float32)
    ids = np.full((len(queries), n), -1, dtype=np.int64)
    offset = 0
    for chunk in chunks:
        chunk_ids = np.broadcast_to(np.arange(offset, offset + len(chunk)), (len(queries), len(chunk)))
        scores, ids = _best(
            np.concatenate([scores, queries @ chunk.T], axis=1), np.concatenate([ids, chunk_ids], axis=1), n
        )
        offset += len(chunk)
    return scores, ids


def recall(found: FloatArray, exact: FloatArray, n: int) -> float:
    """Part of the `n` nearest vectors that an index found among its first `n`, from 0 to 1.

    Both are inner products, best first, -inf where there is no vector: `found` [B, >=n] of the vectors that the index
    gave, computed anew because an index may only estimate them, `exact` [B, >=n] of exact search. Judged by score, the
    twin of a vector is as good as the vector.
    """
    exact, found = exact[:, :n], found[:, :n]
    there = np.isfinite(exact)
    nth = np.where(there, exact, np.inf).min(axis=1, keepdims=True)
    rounding = 1e-5 * np.abs(np.where(there, exact, 0)).max(axis=1, keepdims=True)
    return float((np.isfinite(found) & (found >= nth - rounding)).sum() / max(there.sum(), 1))


def _best(scores: FloatArray, ids: IntArray, n: int) -> tuple[FloatArray, IntArray]:
    """The `n` best columns of each row, best first; columns of equal score keep their order, which is that of ids."""
    # A cut first: sorting a whole chunk would cost more than the matrix product.
    nth = np.partition(scores, -n, axis=1)[:, -n, None]
    above, level = scores > nth, scores == nth
    missing = n - above.sum(axis=1, keepdims=True)
    rows, columns = np.nonzero(above | (level & (np.cumsum(level, axis=1) <= missing)))
    scores, ids = scores[rows, columns].reshape(-1, n), ids[rows, columns].reshape(-1, n)
    order = np.argsort(-scores, axis=1, kind="stable")
    return np.take_along_axis(scores, order, axis=1), np.take_along_axis(ids, order, axis=1)
