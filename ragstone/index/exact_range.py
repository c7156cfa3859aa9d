"""Exact search over a range of rows, on the CPU through FAISS or on a GPU through torch; the best of several ranges.

Shapes: B queries, N results, D dimensions.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Protocol

import numpy as np
import torch

from ragstone.types import FloatArray, IntArray

BLOCK = 1024
"""Rows that FAISS multiplies with the queries at a time. A range that begins at a multiple is multiplied in the same
blocks as the whole, and so gives the same scores to the last bit."""
ROWS_ON_DEVICE = 2**20
"""Rows that are multiplied at a time on a GPU: their scores for 1,000 queries take 4 GB."""


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
        found = [_nothing(len(queries), n)]
        offset = self._first
        for chunk in self._chunks if len(queries) else ():
            scores, ids = faiss.knn(queries, chunk, n, metric=faiss.METRIC_INNER_PRODUCT)
            found.append((scores, np.where(ids < 0, -1, ids + offset)))
            offset += len(chunk)
        return best_of(found, n)


class DeviceRange:
    """Searches a copy of the vectors on a device of torch."""

    def __init__(self, chunks: Sequence[FloatArray], first: int, device: torch.device) -> None:
        """As ExactRange; the vectors take 4 bytes x D each on `device`."""
        rows = sum(map(len, chunks))
        dimension = chunks[0].shape[1] if chunks else 0
        self._vectors = torch.empty(rows, dimension, device=device)
        self._first = first
        offset = 0
        for chunk in chunks:
            # A copy: torch has no tensors over memory that cannot be written, which a map is.
            self._vectors[offset : offset + len(chunk)] = torch.from_numpy(np.array(chunk))
            offset += len(chunk)

    @torch.no_grad()
    def search(self, queries: FloatArray, n: int) -> tuple[FloatArray, IntArray]:
        """See Searcher.search."""
        found = [_nothing(len(queries), n)]
        asked = torch.from_numpy(np.ascontiguousarray(queries, dtype=np.float32)).to(self._vectors.device)
        for start in range(0, len(self._vectors) if len(queries) else 0, ROWS_ON_DEVICE):
            rows = self._vectors[start : start + ROWS_ON_DEVICE]
            scores, ids = torch.topk(asked @ rows.T, min(n, len(rows)), dim=1)
            found.append((scores.cpu().numpy(), ids.cpu().numpy() + start + self._first))
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


def _nothing(queries: int, n: int) -> tuple[FloatArray, IntArray]:
    return np.full((queries, n), -np.inf, np.float32), np.full((queries, n), -1, np.int64)
