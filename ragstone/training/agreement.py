"""What the processes of a run must have in common, which on several hosts need not be so: flags, data, the folder."""

from __future__ import annotations

import uuid
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ragstone.data.examples import Split
from ragstone.errors import InputError
from ragstone.processes.processes import Processes
from ragstone.training.resume import examples_fingerprint
from ragstone.types import Example


def refuse_unlike_flags(flags: Mapping[str, Any], processes: Processes) -> None:
    """Refuse a run whose processes were given different `flags`. Called by all, before anything that depends on them.

    Raises:
        InputError: names a rank and all in which it differs from the first.
    """
    _refuse_unlike({f"--{name}": value for name, value in flags.items()}, processes)


def refuse_unlike_examples(examples: Mapping[Split, Sequence[Example]], processes: Processes) -> None:
    """Refuse a run whose processes have read different `examples` of a split. Called by all.

    Raises:
        InputError: names a rank and the splits.
    """
    if processes.place.size > 1:
        mine = {f"the examples of {split}": examples_fingerprint(found) for split, found in examples.items()}
        _refuse_unlike(mine, processes)


def refuse_unseen_folder(folder: Path, processes: Processes) -> None:
    """Refuse an output folder, there for the first process, that is not one and the same for all. Called by all.

    What the first process writes there, the others read.

    Raises:
        InputError: names a rank that does not see what the first process has just written.
    """
    if processes.place.size == 1:
        return
    mark = folder / processes.share(f".seen-by-all-{uuid.uuid4().hex[:12]}")
    try:
        processes.on_first(mark.touch)
        unseen = [rank for rank, sees in enumerate(processes.gather(_is_there(mark))) if not sees]
    finally:
        if processes.place.is_first and folder.is_dir():
            mark.unlink(missing_ok=True)
    if unseen:
        raise InputError(
            f"--output_dir {folder}, where the first process writes, is not there for rank {unseen[0]}, or is another "
            "folder; give one on storage that all hosts share."
        )


def _refuse_unlike(mine: Mapping[str, Any], processes: Processes) -> None:
    first, *others = processes.gather(dict(mine))
    for rank, other in enumerate(others, 1):
        different = [
            f"{name} ({other.get(name)} there, {value} for rank 0)" if name.startswith("--") else name
            for name, value in first.items()
            if other.get(name) != value
        ]
        if different:
            raise InputError(
                f"Rank {rank} was started differently from rank 0: {', '.join(different)}; start all processes with "
                "the same flags and the same data."
            )


def _is_there(path: Path) -> bool:
    try:
        return path.is_file()
    except OSError:
        # Not allowed to look, or a mount that has gone.
        return False
