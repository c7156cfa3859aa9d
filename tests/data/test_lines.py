"""Text files, line by line."""

from __future__ import annotations

from pathlib import Path

import pytest

from ragstone.data.lines import read_filled_lines, read_lines
from ragstone.errors import InputError


def test_lines_without_their_ends(tmp_path: Path) -> None:
    path = tmp_path / "lines"
    path.write_bytes("\ufefffirst\r\n second \n\nlast\u2028same".encode())
    assert list(read_lines(path)) == ["first", " second ", "", "last\u2028same"]


def test_byte_order_mark_counts_only_at_the_beginning(tmp_path: Path) -> None:
    path = tmp_path / "lines"
    path.write_text("a\n\ufeffb\n", encoding="utf-8")
    assert list(read_lines(path)) == ["a", "\ufeffb"]


def test_broken_utf8_names_line_and_byte(tmp_path: Path) -> None:
    path = tmp_path / "lines"
    path.write_bytes("ä\n".encode() + b"x\xe4y\n")
    lines = read_lines(path)
    assert next(lines) == "ä"
    with pytest.raises(InputError, match=r"lines, line 2: byte 4 is not UTF-8 \(0xe4\)"):
        next(lines)


@pytest.mark.parametrize("name", ["missing", "."])
def test_unreadable_path(tmp_path: Path, name: str) -> None:
    with pytest.raises(InputError, match=r"cannot be read: (No such file|Is a directory)"):
        list(read_lines(tmp_path / name))


def test_every_line_must_say_something(tmp_path: Path) -> None:
    path = tmp_path / "lines"
    path.write_text("a\n \nb\n", encoding="utf-8")
    with pytest.raises(InputError, match="line 2: an empty line; it should hold a question"):
        read_filled_lines(path, "a question")
    path.write_text("", encoding="utf-8")
    with pytest.raises(InputError, match="is empty; it should hold a question on each line"):
        read_filled_lines(path, "a question")
    path.write_text("a\nb", encoding="utf-8")
    assert read_filled_lines(path, "a question") == ["a", "b"]
