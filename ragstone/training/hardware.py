"""Device, precision, trackers and profiler of a training run, from accelerate and torch."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal

import torch

from ragstone.encoders.precision import best_device
from ragstone.errors import InputError
from ragstone.output import write_text

Precision = Literal["no", "bf16", "fp16"]
"""In the words of accelerate."""


def training_device(gpus: int | None, precision: Precision) -> torch.device:
    """The device to train on: a GPU if there is one, unless `gpus` is 0.

    Raises:
        InputError: more GPUs than there are or than one process uses, or fp16 without one.
    """
    there = torch.cuda.device_count()
    if gpus is not None and gpus > there:
        raise InputError(f"--gpus {gpus}: this machine has {there} GPUs that torch can use; give at most that.")
    if gpus is not None and gpus > 1:
        raise InputError(f"--gpus {gpus}: training runs in one process, on one GPU; give --gpus 1.")
    device = torch.device("cpu") if gpus == 0 else best_device()
    if precision == "fp16" and device.type == "cpu":
        raise InputError("--fp16 needs a GPU; on a CPU take --bf16, or leave the precision alone.")
    return device


def refuse_without_wandb() -> None:
    """Check that Weights & Biases is installed.

    Raises:
        InputError: it is not.
    """
    if find_spec("wandb") is None:
        raise InputError("--logger_name wandb needs Weights & Biases: pip install 'ragstone[wandb]'.")


@contextmanager
def accelerator_for(device: torch.device, precision: Precision, trackers: list[str], folder: Path) -> Iterator[Any]:
    """accelerate's Accelerator in a state of its own; `trackers` write into `folder`/tensorboard or to their sites."""
    from accelerate import Accelerator
    from accelerate.state import AcceleratorState
    from accelerate.utils import ProjectConfiguration

    # The state is one per process and keeps the first run's precision; a second run must not inherit it.
    AcceleratorState._reset_state(reset_partial_state=True)
    accelerator = Accelerator(
        mixed_precision=precision,
        cpu=device.type == "cpu",
        log_with=trackers or None,
        project_config=ProjectConfiguration(str(folder), str(folder / "tensorboard")),
    )
    try:
        yield accelerator
    finally:
        accelerator.end_training()
        AcceleratorState._reset_state(reset_partial_state=True)


@contextmanager
def profiled_steps(folder: Path) -> Iterator[Callable[[], None]]:
    """What to call after each step so that steps 3 to 7, or as many of them as there are, are recorded in `folder`.

    profile.txt is a table of operations by time, profile.json a trace for chrome://tracing.
    """
    from torch.profiler import profile, schedule

    def write(profiler: Any) -> None:
        table = profiler.key_averages().table(sort_by="self_cpu_time_total", row_limit=40)
        write_text(folder / "profile.txt", table + "\n")
        profiler.export_chrome_trace(str(folder / "profile.json"))

    with profile(schedule=schedule(wait=1, warmup=1, active=5, repeat=1), on_trace_ready=write) as profiler:
        yield profiler.step
