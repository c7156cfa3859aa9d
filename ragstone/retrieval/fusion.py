"""One ranking of two: by reciprocal ranks, or by a weighted sum of scores. Pure functions.

Shapes: C candidates.
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np

from ragstone.types import FloatArray, IntArray

RANK_CONSTANT = 60
"""k of Cormack, Clarke & Büttcher 2009."""


def reciprocal_rank_fusion(rankings: Iterable[IntArray]) -> tuple[IntArray, FloatArray]:
    """Reciprocal rank fusion (Cormack, Clarke & Büttcher, SIGIR 2009): a candidate's score is Σ 1 / (60 + rank).

    Args:
        rankings: ids, best first, each id once; a ranking that an id is not in gives it nothing.

    Returns:
        ids [C], best first, and their scores [C]; those of equal score in the order in which they first appear.
    """
    fused: dict[int, float] = {}
    for ranking in rankings:
        for rank, number in enumerate(ranking.tolist(), start=1):
            fused[number] = fused.get(number, 0.0) + 1 / (RANK_CONSTANT + rank)
    order = sorted(fused, key=lambda number: -fused[number])
    return np.array(order, dtype=np.int64), np.array([fused[number] for number in order], dtype=np.float32)


def common_scale(dense: FloatArray, bm25: FloatArray) -> float:
    """The factor that makes BM25 scores [C] spread as dense scores [C] of the same candidates do.

    It is the ratio of their standard deviations.

    An inner product of normalised vectors moves by tenths, one of DPR's by tens, a BM25 score by some units: unscaled,
    a weight would mean another thing with every encoder. 1 where either side has one score for all.
    """
    if not len(dense):
        return 1.0
    spread, own = float(dense.std()), float(bm25.std())
    return spread / own if spread > 0 and own > 0 else 1.0
