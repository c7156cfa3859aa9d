"""Exact search over a range of rows by torch's matrix product, on the CPU or on a GPU.

FAISS's flat search does the same over one piece of main memory. Here a source's vectors are searched in the pieces of
mapped files that they lie in, a part of a flat index gives the scores of the whole to the last bit, and there are no
threads beside torch's own, with which FAISS's would contend for the cores. benchmarks/exact_search.py sets both side by
side. A product of some rows with all queries is looked at once for what beats the best so far.

Shapes: B queries, N results, D dimensions, R rows of a group.
"""

from __future__ import annotations

import itertools
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch

from ragstone.index.searcher import nothing_found
from ragstone.types import FloatArray, IntArray

BLOCK = 4096
"""Rows that are multiplied with the queries at a time on a CPU. A range that begins at a multiple is multiplied in the
same blocks as the whole, and so gives the same scores to the last bit."""
GROUP = 2 * BLOCK
"""Rows whose scores are looked at together, while they are in the processor's cache."""
BLOCK_ON_DEVICE = 2**20
"""As BLOCK, on a GPU."""
QUERIES_ON_DEVICE = 64
"""Queries that are searched for at once on a GPU, so that their scores take no more than the index's plan says."""
MANY = 16
"""Candidates for each result above which the lowest are left out before the rest is sorted."""


class ExactRange:
    """Searches the vectors it is given: on the CPU where they are (a memory map), on a GPU in a copy."""

    def __init__(self, chunks: Sequence[FloatArray], first: int, device: torch.device | None = None) -> None:
        """Search vectors.

        Args:
            chunks: the vectors [*, D] of the rows from `first` on, in order.
            first: see above.
            device: a GPU, where they take 4 bytes x D each; None for the CPU.
        """
        self._first = first
        self._device = device or torch.device("cpu")
        self._by_numpy = device is None
        if device is None:
            blocks = [block for chunk in chunks for block in _view(chunk).split(BLOCK) if len(block)]
            self._groups = list(_groups(blocks))
        else:
            self._groups = [[block] for block in _copy(chunks, device).split(BLOCK_ON_DEVICE) if len(block)]

    def search(self, queries: FloatArray, n: int) -> tuple[FloatArray, IntArray]:
        """See Searcher.search. Equal scores are ordered by id."""
        if self._by_numpy or len(queries) <= QUERIES_ON_DEVICE:
            return self._search(queries, n)
        parts = range(0, len(queries), QUERIES_ON_DEVICE)
        scores, ids = zip(*[self._search(queries[i : i + QUERIES_ON_DEVICE], n) for i in parts], strict=True)
        return np.concatenate(scores), np.concatenate(ids)

    @torch.inference_mode()
    def _search(self, queries: FloatArray, n: int) -> tuple[FloatArray, IntArray]:
        best = nothing_found(len(queries), n)
        if len(queries) == 0:
            return best
        asked = _view(np.ascontiguousarray(queries, dtype=np.float32)).to(self._device).T
        offset = self._first
        with _full_precision(self._device.type):
            for sizes, groups in itertools.groupby(self._groups, lambda group: list(map(len, group))):
                scores = torch.empty(sum(sizes), len(queries), device=self._device)
                places = scores.split(sizes)
                for group in groups:
                    for block, place in zip(group, places, strict=True):
                        torch.mm(block, asked, out=place)
                    best = _better(best, scores, offset, self._by_numpy)
                    offset += len(scores)
        return best


def bytes_on_device(rows: int, dimension: int) -> int:
    """What searching so many vectors on a GPU takes of its memory: vectors, scores, and which are above the bar."""
    return 4 * rows * dimension + 5 * min(rows, BLOCK_ON_DEVICE) * QUERIES_ON_DEVICE


def divide(rows: int, parts: int) -> list[tuple[int, int]]:
    """First row and row behind the last of each of `parts` ranges of nearly equal length.

    They begin at multiples of BLOCK, so some are empty where there are too few rows for that.
    """
    bounds = [min(rows, round(rows * number / parts / BLOCK) * BLOCK) for number in range(parts)] + [rows]
    return list(itertools.pairwise(bounds))


def _groups(blocks: Sequence[torch.Tensor]) -> Iterator[list[torch.Tensor]]:
    """The blocks in order, in lists of up to GROUP rows."""
    group: list[torch.Tensor] = []
    for block in blocks:
        if sum(map(len, group)) + len(block) > GROUP:
            yield group
            group = []
        group.append(block)
    if group:
        yield group


def _better(
    best: tuple[FloatArray, IntArray], scores: torch.Tensor, first: int, by_numpy: bool
) -> tuple[FloatArray, IntArray]:
    """The best scores [B, N] and their ids [B, N] after `scores` [R, B] of the rows from `first` on.

    The rows before had lower ids, so of equal scores those stay.
    """
    best_scores, best_ids = best
    b, n = best_ids.shape
    find = _above_by_numpy if by_numpy else _above_by_torch
    rows, queries = np.divmod(find(scores, best_scores[:, -1].copy(), n), b)
    if len(rows) == 0:
        return best
    query = np.concatenate([np.repeat(np.arange(b), n), queries])
    score = np.concatenate([best_scores.reshape(-1), scores[rows, queries].cpu().numpy()])
    row = np.concatenate([best_ids.reshape(-1), rows + first])
    order = np.lexsort((row, -score, query))
    query = query[order]
    rank = np.arange(len(query)) - np.searchsorted(query, np.arange(b))[query]
    order = order[rank < n]
    return score[order].reshape(b, n), row[order].reshape(b, n)


def _above_by_numpy(scores: torch.Tensor, bar: FloatArray, n: int) -> IntArray:
    """Where `scores` [R, B], as if they stood in one row, are above the `bar` [B] of their query; on a CPU.

    Where that is much more than `n` of each query, what cannot be among its highest `n` is left out. By one thread, as
    NumPy does it: to wake others takes longer than the work.
    """
    values = scores.numpy()
    above = values > bar
    if np.count_nonzero(above) > MANY * n * len(bar):
        above &= values >= _low(scores, n).numpy()
    return np.flatnonzero(above)


def _above_by_torch(scores: torch.Tensor, bar: FloatArray, n: int) -> IntArray:
    """As _above_by_numpy, on any device."""
    above = scores > torch.from_numpy(bar).to(scores.device)
    if int(above.count_nonzero()) > MANY * n * len(bar):
        above &= scores >= _low(scores, n)
    return above.flatten().nonzero()[:, 0].cpu().numpy()


def _low(scores: torch.Tensor, n: int) -> torch.Tensor:
    """Scores [B] that at least `n` of more than MANY x `n` rows of `scores` [R, B] reach: the `n`-th of some rows."""
    some = scores[::MANY]
    # What is no number must not count among the highest.
    return some.masked_fill(some.isnan(), -torch.inf).T.topk(n).values[:, -1]


@contextmanager
def _full_precision(device: str) -> Iterator[None]:
    """Multiply matrices in float32, whatever whoever asks computes in (autocast, TF32, bfloat16)."""
    products: tuple[Any, ...] = (torch.backends.cuda.matmul, torch.backends.mkldnn.matmul)  # type: ignore[attr-defined]
    kept = [product.fp32_precision for product in products]
    try:
        for product in products:
            product.fp32_precision = "ieee"
        with torch.autocast(device, enabled=False):
            yield
    finally:
        for product, precision in zip(products, kept, strict=True):
            product.fp32_precision = precision


def _view(chunk: FloatArray) -> torch.Tensor:
    """A tensor over the memory of `chunk`, which is only read, as a map must be."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "The given NumPy array is not writable", UserWarning)
        return torch.from_numpy(chunk)


def _copy(chunks: Sequence[FloatArray], device: torch.device) -> torch.Tensor:
    """All `chunks` in one tensor on `device`."""
    vectors = torch.empty(sum(map(len, chunks)), chunks[0].shape[1] if chunks else 0, device=device)
    offset = 0
    for chunk in chunks:
        vectors[offset : offset + len(chunk)] = _view(chunk)
        offset += len(chunk)
    return vectors
