"""The checkpoints that a training run left in a folder."""

from __future__ import annotations

import re
from pathlib import Path

from ragstone.errors import InputError


def find_checkpoints(folder: Path) -> list[Path]:
    """The checkpoint folders in `folder`, by their numbers; links to one another (best, last) count once.

    Raises:
        InputError: no folder, or none in it.
    """
    if not folder.is_dir():
        raise InputError(f"There is no folder {folder}; --eval_all_checkpoints takes the output folder of finetune.")
    found: dict[Path, Path] = {}
    # Links last, so that a checkpoint keeps its own name.
    for path in sorted(folder.iterdir(), key=lambda path: (path.is_symlink(), _natural(path.name))):
        if (path / "config.json").is_file() and not path.name.startswith("."):
            found.setdefault(path.resolve(), path)
    if not found:
        raise InputError(
            f"{folder} has no checkpoint folders; --eval_all_checkpoints takes the output folder of finetune: leave it "
            "out to evaluate a single checkpoint."
        )
    return list(found.values())


def _natural(name: str) -> list[tuple[int, str]]:
    """A key that sorts checkpoint20 before checkpoint100."""
    return [(int(part), "") if part.isdecimal() else (-1, part) for part in re.split(r"(\d+)", name)]
