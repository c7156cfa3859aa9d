"""Text files that appear whole or not at all, whatever happens while they are written."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path


def write_text(path: Path, text: str) -> None:
    """Write `text` in UTF-8 beside `path`, then put it in its place in one step."""
    new = path.with_name(f".{path.name}.new")
    new.write_text(text, encoding="utf-8")
    new.replace(path)


def write_lines(path: Path, lines: Sequence[str]) -> None:
    """Write a line for each of `lines`, which hold no line breaks."""
    write_text(path, "".join(f"{line}\n" for line in lines))
