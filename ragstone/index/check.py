"""Checking an index against the vectors that it was built from.

Shapes: n vectors, D dimensions.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import numpy as np

from ragstone.errors import InputError
from ragstone.index.vector_index import VectorIndex
from ragstone.types import FloatArray

REMEDY = "build the knowledge source again"


def check_index(index: VectorIndex, chunks: Iterable[FloatArray], path: Path) -> str:
    """Check that an index that keeps whole vectors keeps those of `chunks` [*, D].

    A compressed index has none to compare; only searching tells how good it is. That the links of a graph lead to
    vectors, FAISS checks when it opens the file.

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
