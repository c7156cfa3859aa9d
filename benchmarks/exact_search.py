"""Exact search beside FAISS's own: OMP_WAIT_POLICY=PASSIVE python -m benchmarks.exact_search.

Both have threads of their own, of which those that wait would otherwise spin on cores that the others compute on.
Prints a table of milliseconds per batch of questions over flat vectors in memory: FAISS as it comes, FAISS told to take
matrix products where they are faster with so few threads, and Ragstone. All run in turn, must find the same passages,
and each figure is the median.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Sequence

import faiss
import numpy as np
import torch
from rich.console import Console
from rich.table import Table

from benchmarks.machine import commit, processor
from ragstone.index.exact_range import ExactRange
from ragstone.index.matrix_products import matrix_products
from ragstone.index.searcher import Searcher
from ragstone.types import FloatArray, IntArray

SIZES = ((4096, 768), (10_000, 768), (100_000, 384), (100_000, 768), (1_000_000, 768))
"""Vectors, dimensions. An inverted file over a million vectors has 4,096 centroids."""
QUESTIONS = (1, 32, 200)
N_DOCS = 5
RUNS = 7
SLOW_RUNS = 3
"""Where FAISS takes longer than SLOW."""
SLOW = 1.0
"""Seconds."""


class FaissSearch:
    """FAISS's flat search, over the same memory."""

    def __init__(self, vectors: FloatArray, bound: int) -> None:
        """`bound` is the one from which on FAISS takes matrix products, see index.matrix_products."""
        self._vectors = vectors
        self._bound = bound

    def search(self, queries: FloatArray, n: int) -> tuple[FloatArray, IntArray]:
        """See Searcher.search."""
        faiss.cvar.distance_compute_blas_threshold = self._bound
        scores, ids = faiss.knn(queries, self._vectors, n, metric=faiss.METRIC_INNER_PRODUCT)
        return scores, ids


def main() -> None:
    """Time all ways over all sizes and print the table."""
    own = faiss.cvar.distance_compute_blas_threshold
    with matrix_products():
        bounds = (own, faiss.cvar.distance_compute_blas_threshold)
    shown = Table("vectors", "dimensions", "questions", "FAISS ms", "told ms", "Ragstone ms", "GB/s", "GFLOP/s")
    for column in shown.columns:
        column.justify = "right"
    generator = np.random.default_rng(0)
    for size, dimension in SIZES:
        vectors = generator.standard_normal((size, dimension), dtype=np.float32)
        searchers = [*(FaissSearch(vectors, bound) for bound in bounds), ExactRange([vectors], 0)]
        for count in QUESTIONS:
            questions = generator.standard_normal((count, dimension), dtype=np.float32)
            seconds = _in_turn(searchers, questions)
            rates = (vectors.nbytes / seconds[-1] / 1e9, 2 * count * vectors.size / seconds[-1] / 1e9)
            row = (f"{size:,}", str(dimension), str(count), *(f"{1000 * took:.1f}" for took in seconds))
            shown.add_row(*row, *(f"{rate:.0f}" for rate in rates))
    console = Console(width=120)
    console.print(shown)
    console.print(f"{processor()}, {torch.get_num_threads()} threads, commit {commit()}; {N_DOCS} passages each.")
    console.print(
        f"FAISS takes matrix products from {bounds[0]} numbers in all questions on, and told so from {bounds[1]} on."
    )
    console.print("GB/s and GFLOP/s: Ragstone's, each vector read once, and a product and a sum for each number in it.")


def _in_turn(searchers: Sequence[Searcher], questions: FloatArray) -> list[float]:
    """Median seconds of each.

    Raises:
        AssertionError: they do not find the same.
    """
    began = time.perf_counter()
    _, expected = searchers[0].search(questions, N_DOCS)
    runs = SLOW_RUNS if time.perf_counter() - began > SLOW else RUNS
    for searcher in searchers[1:]:
        np.testing.assert_array_equal(searcher.search(questions, N_DOCS)[1], expected)
    took: list[list[float]] = [[] for _ in searchers]
    for _ in range(runs):
        for searcher, seconds in zip(searchers, took, strict=True):
            began = time.perf_counter()
            searcher.search(questions, N_DOCS)
            seconds.append(time.perf_counter() - began)
    return list(map(statistics.median, took))


if __name__ == "__main__":
    main()
