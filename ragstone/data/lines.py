"""Text files read line by line, strictly: what cannot be read is said with file, line and byte."""

from __future__ import annotations

import gzip
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ragstone.errors import InputError

BYTE_ORDER_MARK = "\ufeff"


def read_lines(path: Path) -> Iterator[str]:
    """The lines of a UTF-8 file without their ends, streamed; a .gz is unpacked on the way.

    Raises:
        InputError: missing, unreadable, or not UTF-8 (names line and byte).
    """
    try:
        file: Any = gzip.open(path) if path.suffix == ".gz" else path.open("rb")  # noqa: SIM115 - it streams
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror}; give a readable file.") from error
    with file:
        offset = 0
        for number, line in enumerate(_raw_lines(file, path), start=1):
            try:
                text = line.decode("utf-8")
            except UnicodeDecodeError as error:
                raise InputError(
                    f"{path}, line {number}: byte {offset + error.start} is not UTF-8 "
                    f"(0x{line[error.start]:02x}); save the file as UTF-8."
                ) from error
            offset += len(line)
            text = text.rstrip("\r\n")
            yield text.removeprefix(BYTE_ORDER_MARK) if number == 1 else text


def _raw_lines(file: Iterator[bytes], path: Path) -> Iterator[bytes]:
    try:
        yield from file
    except (OSError, EOFError, zlib.error) as error:
        reason = getattr(error, "strerror", None) or error
        raise InputError(f"{path} cannot be read: {reason}; copy or download it again.") from error


def spaced(text: str) -> str:
    """A text on one line, with one blank between words; of Unicode's blanks, each counts as one."""
    return " ".join(text.split())


def read_filled_lines(path: Path, what: str) -> list[str]:
    """All lines of a file in which every line must say something.

    Raises:
        InputError: no lines at all, or an empty one (names it); `what` is what a line should hold.
    """
    lines = list(read_lines(path))
    if not lines:
        raise InputError(f"{path} is empty; it should hold {what} on each line.")
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            raise InputError(f"{path}, line {number}: an empty line; it should hold {what}.")
    return lines
