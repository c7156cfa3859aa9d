"""CheckedStream: passes bytes on unchanged, finds broken UTF-8 and knows where it is."""

from __future__ import annotations

import io

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ragstone.data.byte_stream import BrokenStream, CheckedStream


def read_all(stream: CheckedStream, size: int) -> bytes:
    pieces = []
    while piece := stream.read(size):
        pieces.append(piece)
    return b"".join(pieces)


@given(text=st.text(max_size=60), size=st.integers(1, 7))
def test_bytes_arrive_unchanged_whatever_the_pieces(text: str, size: int) -> None:
    content = text.encode()
    stream = CheckedStream(io.BytesIO(content))
    assert read_all(stream, size) == content
    assert stream.size == len(content)


@given(before=st.text(max_size=20), after=st.binary(max_size=5), size=st.integers(1, 7))
def test_broken_byte_is_found_at_its_offset(before: str, after: bytes, size: int) -> None:
    """0xff begins no character, wherever a piece ends."""
    good = before.encode()
    stream = CheckedStream(io.BytesIO(good + b"\xff" + after))
    with pytest.raises(BrokenStream, match="0xff") as caught:
        read_all(stream, size)
    assert caught.value.offset == len(good)


@pytest.mark.parametrize("size", [1, 2, 3, 100])
def test_end_within_a_character(size: int) -> None:
    stream = CheckedStream(io.BytesIO("ab€".encode()[:-1]))
    with pytest.raises(BrokenStream) as caught:
        read_all(stream, size)
    assert caught.value.offset == 2


def test_looking_ahead_takes_nothing_away() -> None:
    content = b" \n" * 3000 + b"[1]"
    stream = CheckedStream(io.BytesIO(content))
    assert stream.starts_with(b"[")
    assert not stream.starts_with(b"{")
    assert read_all(stream, 1000) == content


def test_nothing_but_blanks_starts_with_nothing() -> None:
    assert not CheckedStream(io.BytesIO(b" \n ")).starts_with(b"[")


def test_places_count_lines_and_bytes_from_one() -> None:
    stream = CheckedStream(io.BytesIO(b"ab\ncd\nef"))
    assert stream.read(4) == b"ab\nc"
    assert stream.place(3) == "line 2, byte 4"
    assert stream.read(4) == b"d\nef"
    assert stream.place(6) == "line 3, byte 7"
    assert stream.place(None) == "near line 2, byte 5"


def test_an_excerpt_is_found_across_line_breaks() -> None:
    stream = CheckedStream(io.BytesIO(b"....ab\ncd"))
    stream.read(4)
    stream.read(5)
    assert stream.find(b"b c") == 5
    assert stream.find(b"xyz") is None
    assert stream.find(b"") is None
