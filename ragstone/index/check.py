"""Checking an index against the vectors that it was built from.

Shapes: n vectors, D dimensions.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np

from ragstone.errors import InputError
from ragstone.index.vector_index import VectorIndex
from ragstone.types import FloatArray

REMEDY = "build the knowledge source again"


def check_index(index: VectorIndex, chunks: Iterable[FloatArray], path: Path) -> str:
    """Check that an index keeps the vectors of `chunks` [*, D], if it keeps whole ones, and that a graph links to them.

    A compressed index has no vectors to compare; only searching tells how good it is.

    Args:
        index: an opened index.
        chunks: all vectors in order; read to the end whatever the index.
        path: the index file, for messages.

    Returns:
        The FAISS class of the index.

    Raises:
        InputError: names the file and the first row that differs.
    """
    import faiss

    inner = faiss.downcast_index(index.faiss_index)
    storage = inner
    if isinstance(inner, faiss.IndexHNSW):
        storage = faiss.downcast_index(inner.storage)
        _check_links(inner.hnsw, len(index), path)
    whole = isinstance(storage, faiss.IndexFlat)
    row = 0
    for chunk in chunks:
        if whole:
            differing = np.flatnonzero((storage.reconstruct_n(row, len(chunk)) != chunk).any(axis=1))
            if len(differing):
                raise InputError(
                    f"{path} holds another vector than the passages in row {row + differing[0]}: it is damaged or was "
                    f"built from other passages; {REMEDY}."
                )
        row += len(chunk)
    return type(inner).__name__


def _check_links(graph: Any, count: int, path: Path) -> None:
    """Searching follows links without looking: one that leads outside reads foreign memory."""
    import faiss

    links = faiss.rev_swig_ptr(graph.neighbors.data(), graph.neighbors.size())
    # -1 is a link that is not used.
    if not -1 <= graph.entry_point < count or (len(links) and (links.min() < -1 or links.max() >= count)):
        raise InputError(f"{path} is damaged: its graph links to vectors that it does not have; {REMEDY}.")
