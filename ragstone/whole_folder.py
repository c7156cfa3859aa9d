"""An output folder that appears whole or not at all."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from ragstone.errors import InputError


@contextmanager
def whole_folder(folder: Path, flag: str) -> Iterator[Path]:
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
        if final.exists() and (not final.is_dir() or any(final.iterdir())):
            raise InputError(f"The output folder {folder} is not empty; give {flag} a new or an empty folder.")
        final.parent.mkdir(parents=True, exist_ok=True)
        workshop = Path(tempfile.mkdtemp(prefix=f".{final.name}-", dir=final.parent))
    except OSError as error:
        raise InputError(f"The output folder {folder} cannot be made: {error.strerror}; see {flag}.") from error
    try:
        # The workshop itself is closed to other users; what is made in it has the user's own permissions.
        new = workshop / "new"
        new.mkdir()
        yield new
        new.replace(final)
    except BaseException:
        shutil.rmtree(workshop)
        for parent in made:
            parent.rmdir()
        raise
    workshop.rmdir()
