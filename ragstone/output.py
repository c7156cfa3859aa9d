"""Files and folders that appear whole or not at all, whatever happens while they are written."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from ragstone.errors import InputError


def write_text(path: Path, text: str) -> None:
    """Write `text` in UTF-8 beside `path`, then put it in its place in one step."""
    new = path.with_name(f".{path.name}.new")
    new.write_text(text, encoding="utf-8")
    new.replace(path)


def write_lines(path: Path, lines: Sequence[str]) -> None:
    """Write a line for each of `lines`, which hold no line breaks."""
    write_text(path, "".join(f"{line}\n" for line in lines))


def refuse_used_folder(folder: Path, flag: str) -> None:
    """Refuse an output folder that holds something, which might be another run's work; `flag` is what named it.

    Raises:
        InputError: names the folder.
    """
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise InputError(f"The output folder {folder} is not empty; give a new or an empty folder to {flag}.")


@contextmanager
def new_folder(folder: Path, flag: str) -> Iterator[Path]:
    """A folder beside `folder` to write into, which takes its name when the with-block ends without an error.

    Raises:
        InputError: `folder` holds something already.
    """
    refuse_used_folder(folder, flag)
    folder.parent.mkdir(parents=True, exist_ok=True)
    workshop = Path(tempfile.mkdtemp(prefix=f".{folder.name}-", dir=folder.parent))
    try:
        yield workshop
        workshop.chmod(0o755)
        workshop.replace(folder)
    except BaseException:
        shutil.rmtree(workshop, ignore_errors=True)
        raise
