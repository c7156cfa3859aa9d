"""Names of indexes to FAISS factory strings, with parameters that suit the size of the corpus."""

from __future__ import annotations

import math

from ragstone.errors import InputError
from ragstone.index.empty import empty_index, refuse_beyond_memory, refuse_too_few, refuse_unparsed

BY_SIZE = "auto"
"""flat or hnsw, by the size of the corpus."""
NAMES = (BY_SIZE, "flat", "hnsw", "ivfpq")
"""Indexes by a name of their own."""

EXACT_BYTES = 64 * 2**20
"""Of vectors that `auto` lets be searched exactly: one question takes some milliseconds, which is what reading them all
takes, and many questions less than in a graph."""

POINTS_PER_CENTROID = 39
"""Training vectors that FAISS wants for each centroid, at least."""
PQ_CENTROIDS = 256
"""Centroids of one product quantiser code of 8 bits."""


def factory_string(index: str, dimension: int, count: int, m: int) -> str:
    """The FAISS factory string for `index`: auto, flat, hnsw, ivfpq, or a factory string itself.

    Args:
        index: name or factory string.
        dimension: D of the vectors.
        count: how many vectors the index will hold.
        m: links of an HNSW node (the reference's --m).

    Raises:
        InputError: too few vectors to train the index, too many for this machine's memory, too few links, or what
            FAISS does not know.
    """
    refuse_few_links(index, m)
    if index == BY_SIZE:
        index = "flat" if 4 * dimension * count <= EXACT_BYTES else "hnsw"
    if index in ("flat", "Flat"):
        return "Flat"
    factory = _factory(index, dimension, count, m)
    empty = empty_index(factory, dimension)
    refuse_too_few(empty, factory, count)
    refuse_beyond_memory(empty, factory, dimension, count)
    return factory


def _factory(index: str, dimension: int, count: int, m: int) -> str:
    if index == "hnsw":
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


def refuse_few_links(index: str, m: int) -> None:
    """Refuse a graph whose nodes have less than two links.

    Raises:
        InputError: names --m.
    """
    if index in (BY_SIZE, "hnsw") and m < 2:
        raise InputError(f"--m is {m}, but must be at least 2 for an hnsw index.")


def refuse_unknown_index(index: str, dimension: int | None = None) -> None:
    """Refuse what is neither a name nor a factory string, for vectors of `dimension` where that is known already.

    Raises:
        InputError: names --index.
    """
    if index in NAMES:
        return
    refuse_unparsed(index)
    if dimension is not None:
        empty_index(index, dimension)


def _code_bytes(dimension: int) -> int:
    """Bytes per vector: an eighth of the dimension, or the nearest divisor below it."""
    return max(size for size in range(1, max(dimension // 8, 1) + 1) if dimension % size == 0)
