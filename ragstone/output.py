"""Files and folders that appear whole or not at all, whatever happens while they are written."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

from ragstone.errors import InputError


def write_text(path: Path, text: str) -> None:
    """Write `text` in UTF-8 beside `path`, then put it in its place in one step; its folder is made."""
    path.parent.mkdir(parents=True, exist_ok=True)
    new = path.with_name(f".{path.name}.new")
    try:
        new.write_text(text, encoding="utf-8")
        new.replace(path)
    finally:
        # There only if it did not come into its place.
        new.unlink(missing_ok=True)


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
    """A new folder to write into: it becomes `folder` when the with-block ends well, and is gone when it does not.

    Args:
        folder: what is to be made; not there yet, or empty.
        flag: how the user gave it, for messages.

    Raises:
        InputError: it holds something, which might be another run's work, or cannot be made.
    """
    final = folder.resolve()
    made = [parent for parent in final.parents if not parent.exists()]
    try:
        refuse_used_folder(folder, flag)
        final.parent.mkdir(parents=True, exist_ok=True)
        workshop = Path(tempfile.mkdtemp(prefix=f".{final.name}-", dir=final.parent))
    except OSError as error:
        reason = error.strerror
        raise InputError(f"The output folder {folder} cannot be made: {reason}; give another to {flag}.") from error
    try:
        # The workshop itself is closed to other users; what is made in it has the user's own permissions.
        new = workshop / "new"
        new.mkdir()
        yield new
        new.replace(final)
    except BaseException:
        shutil.rmtree(workshop, ignore_errors=True)
        # A parent stays if something else has come into it meanwhile.
        with suppress(OSError):
            for parent in made:
                parent.rmdir()
        raise
    workshop.rmdir()
