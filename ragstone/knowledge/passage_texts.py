"""From a store's bytes to passages and vectors, whatever keeps them.

Shapes: n rows, D dimensions, B questions, N passages per question.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import TypeVar

import numpy as np
import numpy.typing as npt

from ragstone.types import FloatArray, IntArray, Passage

T = TypeVar("T")


def as_passages(rows: npt.ArrayLike, texts: Iterable[memoryview]) -> list[Passage]:
    """The passages in `rows` [n]; `texts` has title and text of each in turn, in UTF-8."""
    parts = [str(text, "utf-8") for text in texts]
    return list(map(Passage, np.asarray(rows, dtype=np.int64).tolist(), parts[::2], parts[1::2]))


def as_vectors(pieces: Sequence[memoryview], dimension: int) -> FloatArray:
    """Vectors [n, D] in memory of their own; `pieces` has the bytes of each, in float32."""
    return np.frombuffer(bytearray().join(pieces), dtype=np.float32).reshape(len(pieces), dimension)


def in_places(ids: IntArray, read: Callable[[IntArray], Sequence[T]], missing: T) -> list[T]:
    """What `read` finds for `ids` [B, N], B·N in order; `missing` where the id is -1, of which it is not asked."""
    ids = ids.reshape(-1)
    there = ids >= 0
    if there.all():
        return list(read(ids))
    found = iter(read(ids[there]))
    return [next(found) if ok else missing for ok in there.tolist()]


def by_question(found: list[T], ids: IntArray) -> list[list[T]]:
    """B·N things that were found for `ids` [B, N], as B rows of N."""
    b, n = ids.shape
    return [found[row * n : (row + 1) * n] for row in range(b)]
