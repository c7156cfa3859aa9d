"""FAISS's bound for matrix products: for the threads that it has, unless somebody else has set it."""

from __future__ import annotations

from collections.abc import Iterator

import faiss
import numpy as np
import pytest

from ragstone.index.matrix_products import BOUND_PER_THREAD, FOR_MANY_THREADS, matrix_products
from ragstone.index.vector_index import VectorIndex
from ragstone.types import FloatArray, IntArray


@pytest.fixture(autouse=True)
def _bound_put_back() -> Iterator[None]:
    threads, bound = faiss.omp_get_max_threads(), faiss.cvar.distance_compute_blas_threshold
    yield
    faiss.omp_set_num_threads(threads)
    faiss.cvar.distance_compute_blas_threshold = bound


def test_by_threads() -> None:
    """Those that there are, each time; afterwards all is as before."""
    faiss.cvar.distance_compute_blas_threshold = FOR_MANY_THREADS
    for threads in (1, 3, 2):
        faiss.omp_set_num_threads(threads)
        with matrix_products():
            assert faiss.cvar.distance_compute_blas_threshold == BOUND_PER_THREAD * threads
        assert faiss.cvar.distance_compute_blas_threshold == FOR_MANY_THREADS


@pytest.mark.parametrize("bound", [20, 5000])
def test_another_bound_stays(bound: int) -> None:
    """That of older versions, which count queries, and a caller's."""
    faiss.cvar.distance_compute_blas_threshold = bound
    with matrix_products():
        assert faiss.cvar.distance_compute_blas_threshold == bound
    assert faiss.cvar.distance_compute_blas_threshold == bound


def test_an_opened_index_finds_the_same_by_products() -> None:
    """Lists of an inverted file, by the centroids that are nearest."""
    generator = np.random.default_rng(0)
    vectors = generator.standard_normal((4000, 64), dtype=np.float32)
    index = faiss.index_factory(64, "IVF64,Flat", faiss.METRIC_INNER_PRODUCT)
    index.train(vectors)
    index.add(vectors)
    index.nprobe = 4
    asked = generator.standard_normal((40, 64), dtype=np.float32)
    faiss.cvar.distance_compute_blas_threshold = FOR_MANY_THREADS
    faiss.omp_set_num_threads(2)
    scores, ids = index.search(asked, 5)
    bounds = []

    class Watched:
        """Notes the bound while it searches."""

        def search(self, queries: FloatArray, n: int) -> tuple[FloatArray, IntArray]:
            bounds.append(faiss.cvar.distance_compute_blas_threshold)
            found: tuple[FloatArray, IntArray] = index.search(queries, n)
            return found

    opened = VectorIndex(index)
    vars(opened)["_searcher"] = Watched()
    found_scores, found_ids = opened.search(asked, 5)
    assert bounds[0] < asked.size < faiss.cvar.distance_compute_blas_threshold
    np.testing.assert_array_equal(found_ids, ids)
    np.testing.assert_allclose(found_scores, scores, rtol=1e-5)
