"""Exact search over a range of rows whose vectors are on a device of torch, a GPU.

Shapes: B queries, N results, D dimensions.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from ragstone.index.exact_range import best_of, nothing_found
from ragstone.types import FloatArray, IntArray

ROWS_AT_ONCE = 2**20
"""Rows that are multiplied with the queries at a time: their scores for 1,000 queries take 4 GB."""


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
        found = [nothing_found(len(queries), n)]
        asked = torch.from_numpy(np.ascontiguousarray(queries, dtype=np.float32)).to(self._vectors.device)
        for start in range(0, len(self._vectors) if len(queries) else 0, ROWS_AT_ONCE):
            rows = self._vectors[start : start + ROWS_AT_ONCE]
            scores, ids = torch.topk(asked @ rows.T, min(n, len(rows)), dim=1)
            found.append((scores.cpu().numpy(), ids.cpu().numpy() + start + self._first))
        return best_of(found, n)
