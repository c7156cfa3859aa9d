"""From texts in a store's bytes to passages, whatever keeps them. Shapes: B questions, N passages per question."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

import numpy as np
import numpy.typing as npt

from ragstone.types import NO_PASSAGE, IntArray, Passage


def as_passages(rows: npt.ArrayLike, texts: Iterable[memoryview]) -> list[Passage]:
    """The passages in `rows`; `texts` has title and text of each in turn, in UTF-8."""
    parts = iter(texts)
    numbers = np.asarray(rows, dtype=np.int64).tolist()
    return [Passage(row, str(next(parts), "utf-8"), str(next(parts), "utf-8")) for row in numbers]


def in_places(ids: IntArray, read: Callable[[IntArray], Sequence[Passage]]) -> list[list[Passage]]:
    """The passages of `ids` [B, N], which `read` gets at once; NO_PASSAGE where the id is -1."""
    there = ids >= 0
    passages = iter(read(ids[there]))
    return [[next(passages) if ok else NO_PASSAGE for ok in row] for row in there]
