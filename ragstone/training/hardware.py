"""Device, precision, trackers and profiler of a training run, from accelerate and torch."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from importlib.util import find_spec
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import torch

from ragstone.arithmetic import MixedPrecision
from ragstone.errors import InputError
from ragstone.output import write_text
from ragstone.processes.environment import place

LOCAL_RANK = "LOCAL_RANK"
LAYERDROPS = ("encoder_layerdrop", "decoder_layerdrop", "layerdrop")


def training_device(gpus: int | None, local_rank: int = 0) -> torch.device:
    """The device that a process trains on: a GPU of its own if there are any, unless `gpus` is 0."""
    if gpus == 0 or not torch.cuda.is_available():
        return torch.device("cpu")
    device = torch.device("cuda", local_rank)
    # Whatever asks for "the GPU" without a number means this process's.
    torch.cuda.set_device(device)
    return device


def free_on_gpus(numbers: Sequence[int], asks_apart: bool) -> list[int]:
    """Bytes that are free on each of these GPUs.

    Args:
        numbers: of the GPUs.
        asks_apart: whether a process of its own asks. CUDA takes some hundred MiB of a GPU for whoever asks, and gives
            them back when that process ends, which the launcher of others outlives.
    """
    if not asks_apart:
        return [torch.cuda.mem_get_info(number)[0] for number in numbers]
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as other:
        return other.submit(free_on_gpus, numbers, False).result()


def refuse_without_wandb() -> None:
    """Check that Weights & Biases is installed.

    Raises:
        InputError: it is not.
    """
    if find_spec("wandb") is None:
        raise InputError("--logger_name wandb needs Weights & Biases: pip install 'ragstone[wandb]'.")


@contextmanager
def accelerator_for(
    device: torch.device, precision: MixedPrecision, trackers: list[str], folder: Path
) -> Iterator[Any]:
    """accelerate's Accelerator in a state of its own; `trackers` write into `folder`/tensorboard or to their sites."""
    from accelerate import Accelerator
    from accelerate.state import AcceleratorState
    from accelerate.utils import ProjectConfiguration

    # The state is one per process and keeps the first run's precision; a second run must not inherit it.
    AcceleratorState._reset_state(reset_partial_state=True)
    with _plain_if_alone():
        accelerator = Accelerator(
            mixed_precision=precision,
            cpu=device.type == "cpu",
            log_with=trackers or None,
            project_config=ProjectConfiguration(str(folder), str(folder / "tensorboard")),
        )
    if precision == "fp16" and accelerator.scaler is None:
        # On a CPU, accelerate has neither autocast to float16 nor a gradient scaler; torch has both.
        accelerator.native_amp = True
        accelerator.scaler = torch.amp.GradScaler(device.type)
    try:
        yield accelerator
    finally:
        # Not end_training: it would also leave the process group, which is not its own.
        for tracker in accelerator.trackers:
            tracker.finish()
        AcceleratorState._reset_state(reset_partial_state=True)


def release(accelerator: Any) -> None:
    """Let go of the model and the optimiser that `prepare` has given to it."""
    accelerator.free_memory()
    # It looked for garbage before it let go, and what wraps a model for another precision is one circle with it.
    accelerator.free_memory()


@contextmanager
def _plain_if_alone() -> Iterator[None]:
    """Hide torchrun's rank from accelerate where there is one process, which it would make a process group of."""
    rank = os.environ.pop(LOCAL_RANK, None) if place().size == 1 else None
    try:
        yield
    finally:
        if rank is not None:
            os.environ[LOCAL_RANK] = rank


def prepare(accelerator: Any, model: Any, optimizer: Any) -> tuple[Any, Any]:
    """Model and optimiser as accelerate wraps them for its device, precision and processes."""
    from accelerate.utils import DistributedDataParallelKwargs

    # Gradients are exchanged when all are there; those of a layer that layerdrop leaves out never come.
    configs = [module.config for module in model.modules() if hasattr(module, "config")]
    drops = any(getattr(config, name, 0) for config in configs for name in LAYERDROPS)
    accelerator.ddp_handler = DistributedDataParallelKwargs(find_unused_parameters=drops)
    wrapped, prepared = accelerator.prepare(model, optimizer)
    return wrapped, prepared


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
