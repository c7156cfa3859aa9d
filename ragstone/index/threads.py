"""How many threads a search takes, in a process that computes with fewer."""

from __future__ import annotations

import torch

from ragstone.index.searcher import Searcher
from ragstone.types import FloatArray, IntArray


class WithThreads:
    """Searches with a number of threads of its own.

    FAISS and torch use one OpenMP library where torch was loaded first, and two otherwise; so the number is set for
    both, and for a search alone.
    """

    def __init__(self, inner: Searcher, threads: int) -> None:
        self._inner = inner
        self._threads = threads

    def search(self, queries: FloatArray, n: int) -> tuple[FloatArray, IntArray]:
        """See Searcher.search."""
        import faiss

        before = faiss.omp_get_max_threads(), torch.get_num_threads()
        _set(self._threads, self._threads)
        try:
            return self._inner.search(queries, n)
        finally:
            _set(*before)


def _set(for_faiss: int, for_torch: int) -> None:
    import faiss

    faiss.omp_set_num_threads(for_faiss)
    torch.set_num_threads(for_torch)
