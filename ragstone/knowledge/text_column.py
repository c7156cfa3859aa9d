"""A column of strings in Arrow's memory, read by row.

Arrow makes an object for every value that it is asked for, which takes longer than to read the value; so the bytes are
read where they lie: value i stands in `data[offsets[i]:offsets[i + 1]]`.
"""

from __future__ import annotations

from typing import Any

import numpy as np
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
