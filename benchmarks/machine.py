"""What a benchmark's figures were taken on."""

from __future__ import annotations

import dataclasses
import platform
import subprocess
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

CPU_SIDES = (1024, 2048, 3072)
GPU_SIDES = (2048, 4096, 8192)
"""Rows of the square matrices that are multiplied to see how fast a machine can be."""
PAGES, PAGE_BYTES = 20_000, 4096
"""Of memory that is read before and after a pause."""


def commit() -> str:
    """The commit that is checked out here, with -dirty where files differ from it."""
    command = ["git", "describe", "--always", "--dirty", "--exclude=*"]
    return subprocess.run(command, capture_output=True, text=True, check=False).stdout.strip() or "unknown"


def command(program: str, settings: Any) -> str:
    """The command line that gives `settings`, a dataclass of flags, without the paths of one machine."""
    words = [program]
    for field in dataclasses.fields(settings):
        value = getattr(settings, field.name)
        if value == field.default:
            continue
        if isinstance(value, bool):
            words.append(f"--{field.name}")
        else:
            words.append(f"--{field.name} {field.name.upper() if isinstance(value, Path) else value}")
    return " ".join(words)


def processor() -> str:
    """The CPU's name."""
    lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    return next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), platform.machine())


def page_seconds(pause: float) -> tuple[float, float]:
    """Seconds to read a number in a page of memory, a moment after it was read, and `pause` seconds after.

    The second is far more than a cache miss takes where a host takes memory that lies idle from its virtual machines.
    """
    pages = np.ones((PAGES, PAGE_BYTES // 4), dtype=np.float32)
    order = np.random.default_rng(0).permutation(PAGES)

    def read(which: npt.NDArray[np.int64]) -> float:
        began = time.perf_counter()
        pages[which, 0].sum()
        return (time.perf_counter() - began) / len(which)

    read(order)
    soon = read(order)
    time.sleep(pause)
    return soon, read(order[: PAGES // 10])


def multiply_rate(dtype: Any, device: Any, sides: Sequence[int] | None = None) -> float:
    """Floating-point operations a second of matrix products on all threads, the best of several large sizes.

    Args:
        dtype: of torch.
        device: of torch.
        sides: rows of the square matrices.
    """
    import torch

    best = 0.0
    for side in sides or (CPU_SIDES if device.type == "cpu" else GPU_SIDES):
        left, right = (torch.randn(side, side, dtype=dtype, device=device) for _ in range(2))
        out = left @ right
        for _ in range(3):
            _wait(device)
            began = time.perf_counter()
            torch.mm(left, right, out=out)
            _wait(device)
            best = max(best, 2 * side**3 / (time.perf_counter() - began))
    return best


def _wait(device: Any) -> None:
    """Until a GPU has done what it was given."""
    import torch

    if device.type == "cuda":
        torch.cuda.synchronize()
