"""How many threads a search takes, in a process that computes with fewer."""

from __future__ import annotations

from ragstone.index.exact_range import Searcher
from ragstone.types import FloatArray, IntArray


class WithThreads:
    """Searches with a number of threads of its own.

    FAISS and torch use one OpenMP library where torch was loaded first: a number that is set for the one holds for the
    other. So it is set for a search alone.
    """

    def __init__(self, inner: Searcher, threads: int) -> None:
        self._inner = inner
        self._threads = threads

    def search(self, queries: FloatArray, n: int) -> tuple[FloatArray, IntArray]:
        """See Searcher.search."""
        import faiss

        before = faiss.omp_get_max_threads()
        faiss.omp_set_num_threads(self._threads)
        try:
            return self._inner.search(queries, n)
        finally:
            faiss.omp_set_num_threads(before)
