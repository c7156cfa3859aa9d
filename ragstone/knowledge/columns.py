"""Columns of strings and of vectors in Arrow's memory, read by row.

Arrow makes an object for every value that it is asked for, which takes longer than to read the value; so the bytes are
read where they lie: string i stands in `data[offsets[i]:offsets[i + 1]]`. Many of them are joined by one copy.

Shapes: n rows, D dimensions.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa


class TextColumn:
    """Reads the strings of one Arrow array; a missing value is an empty string."""

    def __init__(self, array: Any) -> None:
        """`array` has Arrow's type string or large_string, or becomes one in memory."""
        if not (pa.types.is_string(array.type) or pa.types.is_large_string(array.type)):
            array = array.cast(pa.string())
        if array.null_count:
            # Arrow says nothing of the bytes of a missing value.
            array = array.fill_null("")
        _, offsets, data = array.buffers()
        width = np.dtype(np.int64 if pa.types.is_large_string(array.type) else np.int32)
        # A memoryview gives an integer for an index in half the time that an array takes.
        self._offsets = np.frombuffer(offsets, width, len(array) + 1, array.offset * width.itemsize).data
        self._data = memoryview(data if data is not None else b"")

    def __getitem__(self, row: int) -> memoryview:
        """The string in `row`, as the bytes of its UTF-8."""
        offsets = self._offsets
        return self._data[offsets[row] : offsets[row + 1]]


class VectorColumn:
    """Reads the vectors of one Arrow array."""

    def __init__(self, matrix: npt.NDArray[np.floating[Any]]) -> None:
        """`matrix` [n, D] is the array as it is stored, one row behind the other."""
        self.matrix = matrix
        self._data = matrix.data.cast("B") if matrix.dtype == np.float32 else None
        self._bytes = 4 * matrix.shape[1]

    def __getitem__(self, row: int) -> memoryview:
        """The vector in `row`, as the bytes of its D numbers in float32."""
        if self._data is None:
            return self.matrix[row].astype(np.float32).data.cast("B")
        return self._data[row * self._bytes : (row + 1) * self._bytes]
