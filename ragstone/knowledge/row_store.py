"""Passages with their vectors by row: what a knowledge source needs of whatever keeps them, and what keeps them.

Shapes: n rows, D dimensions.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Protocol

import numpy.typing as npt

from ragstone.knowledge.parquet_store import ParquetStore, holds_parquet
from ragstone.knowledge.store import PassageStore
from ragstone.types import FloatArray, IntArray, Passage


class RowStore(Protocol):
    """Opened passages. Nothing is loaded before it is asked for, and opening takes no work for each row."""

    folder: Path
    dimension: int
    """D of the vectors; 0 where there are none."""
    has_vectors: bool
    """Whether all passages have one."""
    maps_vectors: bool
    """Whether what `vector_chunks` gives are views of a memory map; else they are read into memory."""

    def __len__(self) -> int:
        """How many rows there are."""

    def passages(self, rows: npt.ArrayLike) -> list[Passage]:
        """The passages in `rows` (from 0), in that order."""

    def passage_rows(self, ids: IntArray) -> list[list[Passage]]:
        """The passages of `ids` [B, N], NO_PASSAGE where the id is -1."""

    def text_bytes(self, rows: npt.ArrayLike) -> list[memoryview]:
        """Title and text of each of `rows` in turn, as the bytes of their UTF-8. A missing one is empty."""

    def vector_bytes(self, rows: npt.ArrayLike) -> list[memoryview]:
        """The vector of each of `rows`, as the bytes of its D numbers in float32."""

    def vectors(self, rows: npt.ArrayLike) -> FloatArray:
        """Vectors [n, D] of `rows`, in that order."""

    def vector_chunks(self, first: int = 0, last: int | None = None) -> Iterator[FloatArray]:
        """The vectors of rows `first` to before `last`, all where not said, in order, in chunks [*, D]."""

    def check_texts(self) -> int:
        """Read every title and text; the number of passages without text.

        Raises:
            InputError: text that is damaged.
        """


def open_store(folder: Path) -> RowStore:
    """Open the passages in `folder`: the one place that looks at what it holds.

    Raises:
        InputError: neither a folder of save_to_disk nor one of parquet files, or not with the columns of passages.
    """
    return ParquetStore(folder) if holds_parquet(folder) else PassageStore(folder)
