"""What whoever started this process (torchrun, accelerate launch, ragstone itself) says about its place.

Imports no torch: commands ask before they load anything.
"""

from __future__ import annotations

import os
from dataclasses import dataclass

from ragstone.errors import InputError

ACCELERATE = {
    "ACCELERATE_USE_FSDP": "FSDP",
    "ACCELERATE_USE_DEEPSPEED": "DeepSpeed",
    "ACCELERATE_USE_MEGATRON_LM": "Megatron-LM",
    "ACCELERATE_USE_PARALLELISM_CONFIG": "a parallelism config",
    "ACCELERATE_DYNAMO_BACKEND": "torch.compile",
}
"""What accelerate launch can be told, by its flags or its configuration file, to do with a model; off where not set."""


HIGHEST_PORT = 65535


@dataclass(frozen=True)
class Place:
    """Where a process stands among those that were started together."""

    rank: int = 0
    """Among all, from 0."""
    size: int = 1
    """How many there are."""
    local_rank: int = 0
    """Among those on this host, from 0."""
    local_size: int = 1
    """How many there are on this host."""

    @property
    def is_first(self) -> bool:
        return self.rank == 0


def place() -> Place:
    """The place that the environment gives, in torchrun's variables; that of the only process where it gives none.

    Raises:
        InputError: WORLD_SIZE is above 1, but the rest, or where the processes meet, is missing or makes no sense.
    """
    if os.environ.get("WORLD_SIZE", "1") == "1":
        return Place()
    names = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE")
    values = []
    for name in names:
        text = os.environ.get(name, "")
        if not text.isdecimal():
            raise InputError(
                f"WORLD_SIZE is {os.environ['WORLD_SIZE']}, but {name} is {text!r}; start the processes with torchrun "
                "or accelerate launch, or unset WORLD_SIZE."
            )
        values.append(int(text))
    found = Place(*values)
    if not (found.rank < found.size and found.local_rank < found.local_size <= found.size):
        shown = ", ".join(f"{name} {value}" for name, value in zip(names, values, strict=True))
        raise InputError(f"The environment of this process contradicts itself: {shown}; start it with torchrun.")
    host, port = (os.environ.get(name, "") for name in ("MASTER_ADDR", "MASTER_PORT"))
    if not host or not port.isdecimal() or int(port) > HIGHEST_PORT:
        raise InputError(
            f"WORLD_SIZE is {found.size}, but MASTER_ADDR is {host!r} and MASTER_PORT {port!r}: the address and port "
            "of the first process; start the processes with torchrun, or set both."
        )
    return found


def refuse_other_training() -> None:
    """Check that accelerate launch was told to start processes, and nothing else.

    Raises:
        InputError: it was told to divide or compile the model.
    """
    for name, what in ACCELERATE.items():
        if os.environ.get(name, "").lower() not in ("", "0", "no", "false"):
            raise InputError(
                f"accelerate launch was told to train with {what} ({name}), but each process here trains the whole "
                "model as it is; leave that out, and have it in no --config_file and not in "
                "what accelerate config has written."
            )
