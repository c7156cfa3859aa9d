"""Freed memory that is kept, by glibc's own count, in processes that have freed nothing yet."""

from __future__ import annotations

import ctypes
import multiprocessing
import os
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from ragstone.allocation import keeping_freed_memory

BLOCK = 2**27
"""Bytes, more than glibc ever takes from its heap by itself."""
NAMES = ("arena", "ordblks", "smblks", "hblks", "hblkhd", "usmblks", "fsmblks", "uordblks", "fordblks", "keepcost")


class Mallinfo2(ctypes.Structure):
    _fields_ = [(name, ctypes.c_size_t) for name in NAMES]


def malloc_says(name: str) -> int:
    """One of the numbers that malloc counts: bytes of its heap (arena), or blocks that are mapped (hblks)."""
    libc = ctypes.CDLL(None)
    libc.mallinfo2.restype = Mallinfo2
    return int(getattr(libc.mallinfo2(), name))


def is_mapped() -> bool:
    """Whether a large block is mapped for itself."""
    before = malloc_says("hblks")
    block = np.empty(BLOCK, dtype=np.uint8)
    mapped = malloc_says("hblks") - before
    del block
    return mapped == 1


def keep_and_let_go() -> tuple[list[bool], list[float]]:
    """Whether blocks are mapped before, within and behind the with-block, and of how many blocks the heap grows."""
    mapped, heap = [is_mapped()], [malloc_says("arena")]
    with keeping_freed_memory():
        mapped += [is_mapped() for _ in range(20)]
        with keeping_freed_memory():
            pass
        mapped.append(is_mapped())
        heap.append(malloc_says("arena"))
    heap.append(malloc_says("arena"))
    mapped.append(is_mapped())
    return mapped, [(size - heap[0]) / BLOCK for size in heap]


def fail() -> bool:
    """Whether a block is mapped after something went wrong."""
    try:
        with keeping_freed_memory():
            Path("/nowhere").stat()
    except FileNotFoundError:
        return is_mapped()
    raise AssertionError


def set_environment(environment: dict[str, str]) -> None:
    os.environ.update(environment)


def keep() -> bool:
    with keeping_freed_memory():
        return is_mapped()


@pytest.fixture
def fresh() -> Callable[..., ProcessPoolExecutor]:
    if not hasattr(ctypes.CDLL(None), "mallinfo2"):
        pytest.skip("not glibc 2.33 or later")

    def start(**environment: str) -> ProcessPoolExecutor:
        return ProcessPoolExecutor(1, multiprocessing.get_context("spawn"), set_environment, (environment,))

    return start


def test_large_blocks_stay_until_the_end(fresh: Callable[..., ProcessPoolExecutor]) -> None:
    with fresh() as process:
        mapped, heap = process.submit(keep_and_let_go).result()
    assert mapped == [True, *[False] * 21, True]
    # Freed, still there, and taken again: small ones that come between may hold a gap or two open.
    assert 0.5 < heap[1] < 4
    assert heap[2] < 0.5


def test_it_ends_when_something_goes_wrong(fresh: Callable[..., ProcessPoolExecutor]) -> None:
    with fresh() as process:
        assert process.submit(fail).result()


@pytest.mark.parametrize("name", ["MALLOC_ARENA_MAX", "GLIBC_TUNABLES"])
def test_settings_of_the_environment_are_left_alone(fresh: Callable[..., ProcessPoolExecutor], name: str) -> None:
    with fresh() as process, fresh(**{name: "2"}) as other:
        assert (process.submit(keep).result(), other.submit(keep).result()) == (False, True)
