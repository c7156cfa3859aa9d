"""Numbers that are too small for full precision, taken for zero.

Below 1.2e-38, float32 has ever fewer digits left (denormal numbers), and processors compute with such a number some
hundred times as long as with others. Training makes many: the gradients through a passage are smaller than its
posterior, by some powers of ten, and Adam's averages of a token that is not seen again fade until they stay there.
"""

from __future__ import annotations

import ctypes
import sys
from collections.abc import Iterator
from contextlib import contextmanager

import torch

OMP_PAUSE_HARD = 2
"""Of OpenMP's omp.h: threads end, and others start with the next computation."""


@contextmanager
def flushing_denormals() -> Iterator[None]:
    """Let the processor take denormal numbers for zero within the with-block, for this thread and those it starts.

    Processors that cannot do so are left as they are.
    """
    if _flushes():
        yield
        return
    _flush(True)
    try:
        yield
    finally:
        _flush(False)


def _flush(flushes: bool) -> None:
    torch.set_flush_denormal(flushes)
    # A thread does as the one that starts it, so those that wait for work are ended.
    pause = None if sys.platform == "win32" else getattr(ctypes.CDLL(None), "omp_pause_resource_all", None)
    if pause is not None:
        pause(OMP_PAUSE_HARD)


def _flushes() -> bool:
    return bool(torch.tensor(1e-38, dtype=torch.float32, device="cpu") * 0.1 == 0)
