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


def recall(found: IntArray, exact: IntArray, n: int) -> float:
    """Part of the first `n` of `exact` [B, >=n] that is among the first `n` of `found` [B, >=n], from 0 to 1."""
    exact, found = exact[:, :n], found[:, :n]
    hits = (exact[:, :, None] == found[:, None, :]).any(axis=2) & (exact >= 0)
    return float(hits.sum() / max((exact >= 0).sum(), 1))


def _best(scores: FloatArray, ids: IntArray, n: int) -> tuple[FloatArray, IntArray]:
    if scores.shape[1] > 4 * n:
        # A cheap cut first: sorting a whole chunk would cost more than the matrix product.
        top = np.argpartition(-scores, n, axis=1)[:, : 2 * n]
        scores, ids = np.take_along_axis(scores, top, axis=1), np.take_along_axis(ids, top, axis=1)
    order = np.lexsort((ids, -scores), axis=1)[:, :n]
    return np.take_along_axis(scores, order, axis=1), np.take_along_axis(ids, order, axis=1)
