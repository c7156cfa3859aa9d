"""Memory of freed tensors, kept for the next ones.

glibc maps a block of more than 32 MiB anew each time, and gives its pages back as soon as it is freed; the kernel fills
every page with zeros before it is used again. On a CPU, gradients of embeddings and scores over a vocabulary are such
blocks: a training step of a small model takes and frees 300 MiB of them, an eighth of its time.
"""

from __future__ import annotations

import ctypes
import os
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

# Numbers of glibc's malloc.h.
M_TRIM_THRESHOLD, M_MMAP_THRESHOLD, M_MMAP_MAX = -1, -3, -4
KEEPING = {M_MMAP_MAX: 0, M_TRIM_THRESHOLD: -1}
"""No block is mapped for itself, and nothing is ever given back."""
BY_ITSELF = {M_MMAP_MAX: 65536, M_MMAP_THRESHOLD: 32 * 2**20, M_TRIM_THRESHOLD: 64 * 2**20}
"""What glibc comes to where large blocks are freed. It moves its thresholds no more once something was set."""

_keeping = 0
"""With-blocks of `keeping_freed_memory` that are open."""


@contextmanager
def keeping_freed_memory() -> Iterator[None]:
    """Let what this process frees within the with-block stay with it until the end of the block.

    At its peak it takes about as much memory as before, but it keeps what it took. Whoever has set glibc's malloc up by
    the environment knows better; other C libraries are left as they are.
    """
    global _keeping
    libc = _glibc()
    if libc is None:
        yield
        return
    if _keeping == 0:
        _set(libc, KEEPING)
    _keeping += 1
    try:
        yield
    finally:
        _keeping -= 1
        if _keeping == 0:
            _set(libc, BY_ITSELF)
            libc.malloc_trim(0)


def give_freed_memory_back() -> None:
    """Give the system what is freed now; what is freed later within a with-block stays as before."""
    libc = _glibc()
    if libc is not None:
        libc.malloc_trim(0)


def _set(libc: Any, options: Mapping[int, int]) -> None:
    for option, value in options.items():
        libc.mallopt(option, value)


def _glibc() -> Any:
    """The C library, where it is glibc and nobody has set its malloc up."""
    if sys.platform != "linux" or any(name.startswith(("MALLOC_", "GLIBC_TUNABLES")) for name in os.environ):
        return None
    libc = ctypes.CDLL(None)
    return libc if hasattr(libc, "gnu_get_libc_version") else None
