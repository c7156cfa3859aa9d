"""Memory of freed tensors, kept for the next ones.

glibc maps a block of more than 32 MiB anew each time, and gives its pages back as soon as it is freed; the kernel fills
every page with zeros before it is used again. On a CPU, gradients of embeddings and scores over a vocabulary are such
blocks: a training step of a small model takes and frees 300 MiB of them, an eighth of its time.
"""

from __future__ import annotations

import ctypes
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

# Of glibc's malloc.h, and what it takes where nothing is said.
M_TRIM_THRESHOLD, DEFAULT_TRIM_THRESHOLD = -1, 128 * 2**10
M_MMAP_MAX, DEFAULT_MMAP_MAX = -4, 65536
NEVER_TRIM = 2**31 - 1

_keeping = 0
"""With-blocks of `keeping_freed_memory` that are open."""


@contextmanager
def keeping_freed_memory() -> Iterator[None]:
    """Let what this process frees within the with-block stay with it until the end of the block.

    It takes no more memory at its peak than before, but keeps what it took. Whoever has set glibc's malloc up by the
    environment knows better; other C libraries are left as they are.
    """
    global _keeping
    libc = _glibc()
    if libc is None:
        yield
        return
    if _keeping == 0:
        libc.mallopt(M_MMAP_MAX, 0)
        libc.mallopt(M_TRIM_THRESHOLD, NEVER_TRIM)
    _keeping += 1
    try:
        yield
    finally:
        _keeping -= 1
        if _keeping == 0:
            libc.mallopt(M_MMAP_MAX, DEFAULT_MMAP_MAX)
            libc.mallopt(M_TRIM_THRESHOLD, DEFAULT_TRIM_THRESHOLD)
            libc.malloc_trim(0)


def _glibc() -> Any:
    """The C library, where it is glibc and nobody has set its malloc up."""
    if sys.platform != "linux" or any(name.startswith(("MALLOC_", "GLIBC_TUNABLES")) for name in os.environ):
        return None
    libc = ctypes.CDLL(None)
    return libc if hasattr(libc, "gnu_get_libc_version") else None
