"""A search with threads of its own leaves those of the process as they were."""

from __future__ import annotations

import faiss
import numpy as np
import pytest
import torch

from ragstone.index.threads import WithThreads
from ragstone.types import FloatArray, IntArray


class Watched:
    """Notes how many threads there are while it searches."""

    def __init__(self, error: Exception | None = None) -> None:
        self.threads = (0, 0)
        self._error = error

    def search(self, queries: FloatArray, n: int) -> tuple[FloatArray, IntArray]:
        self.threads = (faiss.omp_get_max_threads(), torch.get_num_threads())
        if self._error is not None:
            raise self._error
        return np.zeros((len(queries), n), np.float32), np.arange(len(queries) * n).reshape(-1, n)


@pytest.mark.parametrize("error", [None, RuntimeError("no")])
def test_only_the_search_has_them(error: Exception | None) -> None:
    before = (faiss.omp_get_max_threads(), torch.get_num_threads())
    inner = Watched(error)
    searcher = WithThreads(inner, before[0] + 3)
    if error is None:
        _, ids = searcher.search(np.zeros((2, 4), np.float32), 3)
        assert ids.tolist() == [[0, 1, 2], [3, 4, 5]]
    else:
        with pytest.raises(RuntimeError):
            searcher.search(np.zeros((2, 4), np.float32), 3)
    assert inner.threads == (before[0] + 3, before[0] + 3)
    assert (faiss.omp_get_max_threads(), torch.get_num_threads()) == before
