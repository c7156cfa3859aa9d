"""Exact search over a range of rows through FAISS, and the best of several ranges.

Shapes: B queries, N results, D dimensions.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Protocol

import numpy as np

from ragstone.types import FloatArray, IntArray

BLOCK = 1024
"""Rows that FAISS multiplies with the queries at a time. A range that begins at a multiple is multiplied in the same
blocks as the whole, and so gives the same scores to the last bit."""


class Searcher(Protocol):
    """Finds the nearest vectors."""

    def search(self, queries: FloatArray, n: int) -> tuple[FloatArray, IntArray]:
        """Scores [B, N] and ids [B, N] of the nearest vectors to `queries` [B, D], ids -1 where there are fewer."""


class ExactRange:
    """Searches the vectors it is given, which stay where they are (a memory map)."""

    def __init__(self, chunks: Sequence[FloatArray], first: int) -> None:
        """`chunks` [*, D] are the vectors of the rows from `first` on, in order."""
        self._chunks = chunks
        self._first = first

    def search(self, queries: FloatArray, n: int) -> tuple[FloatArray, IntArray]:
        """See Searcher.search."""
        import faiss

        queries = np.ascontiguousarray(queries, dtype=np.float32)
        found = [nothing_found(len(queries), n)]
        offset = self._first
        for chunk in self._chunks if len(queries) else ():
            scores, ids = faiss.knn(queries, chunk, n, metric=faiss.METRIC_INNER_PRODUCT)
            found.append((scores, np.where(ids < 0, -1, ids + offset)))
            offset += len(chunk)
        return best_of(found, n)


def best_of(found: Sequence[tuple[FloatArray, IntArray]], n: int) -> tuple[FloatArray, IntArray]:
    """The `n` best of what several searches found, best first, equal scores by id; missing ones (id -1) last.

    Args:
        found: scores [B, *] and ids [B, *] of each search.
        n: how many are wanted, at most as many as there are columns.
    """
    scores = np.concatenate([part for part, _ in found], axis=1)
    ids = np.concatenate([part for _, part in found], axis=1)
    scores = np.where(ids < 0, -np.inf, scores).astype(np.float32)
    order = np.lexsort((ids, -scores))[:, :n]
    return np.take_along_axis(scores, order, axis=1), np.take_along_axis(ids, order, axis=1)


def divide(rows: int, parts: int) -> list[tuple[int, int]]:
    """First row and row behind the last of each of `parts` ranges of nearly equal length.

    They begin at multiples of BLOCK, unless there are too few rows for that.
    """
    unit = BLOCK if rows >= BLOCK * parts else 1
    bounds = [round(rows * number / parts / unit) * unit for number in range(parts)] + [rows]
    return list(itertools.pairwise(bounds))


def nothing_found(queries: int, n: int) -> tuple[FloatArray, IntArray]:
    """Scores [B, N] and ids [B, N] of a search that found nothing for `queries` queries."""
    return np.full((queries, n), -np.inf, np.float32), np.full((queries, n), -1, np.int64)
