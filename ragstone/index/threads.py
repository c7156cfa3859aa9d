"""How many threads FAISS and torch take, for a while.

They use one OpenMP library where torch was loaded first, and two otherwise; so the number is set for both.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from ragstone.index.searcher import Searcher
from ragstone.types import FloatArray, IntArray


@contextmanager
def threads(number: int | None) -> Iterator[None]:
    """So many within the with-block, and as many as before after it; None changes nothing."""
    if number is None:
        yield
        return
    import faiss
    import torch

    before = faiss.omp_get_max_threads(), torch.get_num_threads()
    faiss.omp_set_num_threads(number)
    torch.set_num_threads(number)
    try:
        yield
    finally:
        faiss.omp_set_num_threads(before[0])
        torch.set_num_threads(before[1])


class WithThreads:
    """Searches with a number of threads of its own, in a process that computes with fewer."""

    def __init__(self, inner: Searcher, number: int) -> None:
        self._inner = inner
        self._number = number

    def search(self, queries: FloatArray, n: int) -> tuple[FloatArray, IntArray]:
        """See Searcher.search."""
        with threads(self._number):
            return self._inner.search(queries, n)
