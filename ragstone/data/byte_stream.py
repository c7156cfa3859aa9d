"""A binary stream that checks for UTF-8 as it is read and knows its place: line and byte."""

from __future__ import annotations

import codecs
from typing import IO


class BrokenStream(Exception):
    """Bytes that are no UTF-8; `offset` counts bytes from the stream's beginning."""

    def __init__(self, reason: str, offset: int) -> None:
        super().__init__(reason)
        self.offset = offset


class CheckedStream:
    """Passes a binary stream on, piece by piece. Remembers the last piece only."""

    def __init__(self, file: IO[bytes]) -> None:
        self._file = file
        self._decoder = codecs.getincrementaldecoder("utf-8")()
        self._ahead = b""
        self._piece = b""
        self._piece_start = 0
        self._lines_before = 0

    @property
    def size(self) -> int:
        """Bytes read so far."""
        return self._piece_start + len(self._piece)

    def starts_with(self, prefix: bytes) -> bool:
        """Whether the first bytes, blanks aside, are `prefix`. Call before the first read."""
        while not self._ahead.strip():
            piece = self._file.read(4096)
            if not piece:
                return False
            self._ahead += piece
        return self._ahead.lstrip().startswith(prefix)

    def read(self, size: int) -> bytes:
        """The next bytes, at most `size`; none at the end.

        Raises:
            BrokenStream: they are no UTF-8, or the stream ends within a character.
        """
        piece, self._ahead = self._ahead[:size], self._ahead[size:]
        if size and not piece:
            piece = self._file.read(size)
        if not piece and size == 0:
            return b""
        self._lines_before += self._piece.count(b"\n")
        self._piece_start = self.size
        self._piece = piece
        pending = len(self._decoder.getstate()[0])
        try:
            self._decoder.decode(piece, final=not piece)
        except UnicodeDecodeError as error:
            offset = self._piece_start - pending + error.start
            wrong = error.object[error.start]
            raise BrokenStream(f"byte 0x{wrong:02x} is not UTF-8; convert the file to UTF-8", offset) from error
        return piece

    def find(self, excerpt: bytes) -> int | None:
        """The offset of `excerpt` in the last piece, with line breaks read as blanks; None if it is not there."""
        flat = self._piece.replace(b"\n", b" ").replace(b"\r", b" ")
        at = flat.find(excerpt)
        return None if at < 0 or not excerpt else self._piece_start + at

    def place(self, offset: int | None) -> str:
        """`offset` in words; lines and bytes count from 1. Without an offset, the last piece's beginning."""
        known = self._piece_start if offset is None else offset
        line = self._lines_before + 1 + self._piece[: max(0, known - self._piece_start)].count(b"\n")
        return f"{'near ' if offset is None else ''}line {line}, byte {known + 1}"
