"""Names of indexes to FAISS factory strings, with parameters that suit the size of the corpus."""

from __future__ import annotations

import math

from ragstone.errors import InputError

POINTS_PER_CENTROID = 39
"""Training vectors that FAISS wants for each centroid, at least."""
PQ_CENTROIDS = 256
"""Centroids of one product quantiser code of 8 bits."""


def factory_string(index: str, dimension: int, count: int, m: int) -> str:
    """The FAISS factory string for `index`: flat, hnsw, ivfpq, or a factory string itself.

    Args:
        index: name or factory string.
        dimension: D of the vectors.
        count: how many vectors the index will hold.
        m: links of an HNSW node (the reference's --m).

    Raises:
        InputError: too few vectors to train the index, or too few links.
    """
    if index == "flat":
        return "Flat"
    if index == "hnsw":
        if m < 2:
            raise InputError(f"--m is {m}, but a node of an hnsw index has at least 2 links.")
        return f"HNSW{m},Flat"
    if index == "ivfpq":
        if count < PQ_CENTROIDS:
            raise InputError(
                f"--index ivfpq learns {PQ_CENTROIDS} centroids and there are only {count} passages; use --index flat."
            )
        # 4 sqrt(count) lists balance the search over centroids against the search within lists.
        lists = 2 ** round(math.log2(4 * math.sqrt(count)))
        lists = max(1, min(lists, count // POINTS_PER_CENTROID))
        return f"IVF{lists},PQ{_code_bytes(dimension)}x8"
    return index


def _code_bytes(dimension: int) -> int:
    """Bytes per vector: an eighth of the dimension, or the nearest divisor below it."""
    return max(size for size in range(1, max(dimension // 8, 1) + 1) if dimension % size == 0)
