"""Strings and vectors read from Arrow's buffers are those that Arrow gives."""

from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ragstone.knowledge.columns import TextColumn, VectorColumn


@given(
    texts=st.lists(st.one_of(st.none(), st.text(max_size=9)), min_size=1, max_size=9),
    kind=st.sampled_from([pa.string(), pa.large_string(), pa.string_view()]),
    data=st.data(),
)
def test_every_row_of_any_slice(texts: list[str | None], kind: Any, data: st.DataObject) -> None:
    first = data.draw(st.integers(0, len(texts) - 1))
    column = TextColumn(pa.array(texts, kind)[first:])
    assert [bytes(column[row]).decode() for row in range(len(texts) - first)] == [text or "" for text in texts[first:]]


def test_bytes_of_a_missing_value_are_not_read() -> None:
    """Nothing in Arrow's format says that there are none."""
    offsets, data = pa.py_buffer(b"\0\0\0\0\3\0\0\0\5\0\0\0"), pa.py_buffer(b"abcde")
    array = pa.StringArray.from_buffers(2, offsets, data, pa.py_buffer(b"\2"), 1)
    assert array.to_pylist() == [None, "de"]
    assert [bytes(TextColumn(array)[row]) for row in range(2)] == [b"", b"de"]


@pytest.mark.parametrize("kind", [pa.string(), pa.large_string()])
def test_no_text_at_all(kind: Any) -> None:
    assert bytes(TextColumn(pa.array(["", ""], kind))[1]) == b""


@pytest.mark.parametrize("kind", ["float16", "float32", "float64"])
def test_a_vector_is_read_in_float32(kind: str) -> None:
    matrix = np.random.default_rng(0).normal(size=(5, 3)).astype(kind)
    column = VectorColumn(matrix)
    for row in (4, 0):
        np.testing.assert_array_equal(np.frombuffer(column[row], np.float32), matrix[row].astype(np.float32))
