"""When FAISS compares queries with vectors, or with centroids, by a matrix product."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

FOR_MANY_THREADS = 128_000
"""FAISS 1.15's own bound, whatever the number of threads."""
BOUND_PER_THREAD = 800
"""Above which a matrix product takes less time, by the measurements in FAISS's pull request 5109."""


@contextmanager
def matrix_products() -> Iterator[None]:
    """Let FAISS take a matrix product for a batch of queries where that is faster with the threads that it has.

    Its bound counts the numbers in all queries of a batch. Below, it computes one inner product after the other, with
    queries shared among threads: 32 queries of 768 dimensions take more than five times as long then on two threads
    (benchmarks/exact_search.py). Another bound than that of FAISS 1.15 is left as it is: versions before count queries,
    and a caller may have chosen one.
    """
    import faiss

    if faiss.cvar.distance_compute_blas_threshold != FOR_MANY_THREADS:
        yield
        return
    faiss.cvar.distance_compute_blas_threshold = BOUND_PER_THREAD * faiss.omp_get_max_threads()
    try:
        yield
    finally:
        faiss.cvar.distance_compute_blas_threshold = FOR_MANY_THREADS
