"""What searches vectors, and the best of what several searches found.

Shapes: B queries, N results, D dimensions.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import numpy as np

from ragstone.types import FloatArray, IntArray


class Searcher(Protocol):
    """Finds the nearest vectors."""

    def search(self, queries: FloatArray, n: int) -> tuple[FloatArray, IntArray]:
        """Scores [B, N] and ids [B, N] of the nearest vectors to `queries` [B, D], ids -1 where there are fewer."""


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


def nothing_found(queries: int, n: int) -> tuple[FloatArray, IntArray]:
    """Scores [B, N] and ids [B, N] of a search that found nothing for `queries` queries."""
    return np.full((queries, n), -np.inf, np.float32), np.full((queries, n), -1, np.int64)
