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


def refuse_unlike_ranks(
    flags: Mapping[str, Any], examples: Mapping[Split, Sequence[Example]], processes: Processes
) -> None:
    """Refuse a run whose processes were given different things. Called by all.

    Args:
        flags: what must be alike, by flag.
        examples: of each split that the run reads.
        processes: all.

    Raises:
        InputError: names a rank and all in which it differs from the first.
    """
    mine = {f"--{name}": value for name, value in flags.items()}
    mine |= {f"the examples of {split}": examples_fingerprint(found) for split, found in examples.items()}
    first, *others = processes.gather(mine)
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


def refuse_unseen_folder(folder: Path, processes: Processes) -> None:
    """Refuse an output folder, which the first process has, that is not the same one for all. Called by all.

    What the first process writes there, the others read.

    Raises:
        InputError: names a rank that does not see what the first process has just written.
    """
    mark = folder / processes.share(f".seen-by-all-{uuid.uuid4().hex[:12]}")
    processes.on_first(mark.touch)
    try:
        unseen = [rank for rank, sees in enumerate(processes.gather(mark.is_file())) if not sees]
    finally:
        if processes.place.is_first:
            mark.unlink(missing_ok=True)
    if unseen:
        raise InputError(
            f"--output_dir {folder}, where the first process writes, is not there for rank {unseen[0]}, or is another "
            "folder; give one on storage that all hosts share."
        )
