"""Freed memory that is kept, by glibc's own count, in processes that have freed nothing yet."""

from __future__ import annotations

import ctypes
import multiprocessing
import os
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import numpy as np
import psutil
import pytest

from ragstone.allocation import give_freed_memory_back, keeping_freed_memory

BLOCK = 2**27
"""Bytes, more than glibc ever takes from its heap by itself."""
NAMES = ("arena", "ordblks", "smblks", "hblks", "hblkhd", "usmblks", "fsmblks", "uordblks", "fordblks", "keepcost")


class Mallinfo2(ctypes.Structure):
    _fields_ = [(name, ctypes.c_size_t) for name in NAMES]


def malloc_says(name: str) -> int:
    """One of the numbers that malloc counts, such as blocks that are mapped for themselves (hblks)."""
    libc = ctypes.CDLL(None)
    libc.mallinfo2.restype = Mallinfo2
    return int(getattr(libc.mallinfo2(), name))


def is_mapped(blocks: int = 1) -> bool:
    """Whether so many blocks in one are mapped for themselves."""
    before = malloc_says("hblks")
    block = np.empty(blocks * BLOCK, dtype=np.uint8)
    mapped = malloc_says("hblks") - before
    del block
    return mapped == 1


def held() -> float:
    """Blocks that this process holds in memory."""
    return psutil.Process().memory_info().rss / BLOCK


def keep_and_let_go() -> tuple[list[bool], list[float]]:
    """Whether blocks are mapped before, within and behind the with-block, and how many are held that were freed."""
    mapped, before, holds = [is_mapped()], held(), []
    with keeping_freed_memory():
        for _ in range(20):
            mapped.append(is_mapped())
            np.ones(BLOCK, dtype=np.uint8)
        with keeping_freed_memory():
            pass
        mapped.append(is_mapped())
        holds.append(held() - before)
    # Room in the heap that is too small for it may be left there, without memory.
    return [*mapped, is_mapped(8)], [*holds, held() - before]


def give() -> tuple[float, float, bool]:
    """Blocks held of four that were freed, before and after they are given back; whether the next is mapped."""
    with keeping_freed_memory():
        before = held()
        np.ones(4 * BLOCK, dtype=np.uint8)
        kept = held() - before
        give_freed_memory_back()
        return kept, held() - before, is_mapped()


def fail() -> bool:
    """Whether a block is mapped after something went wrong."""
    try:
        with keeping_freed_memory():
            Path("/nowhere").stat()
    except FileNotFoundError:
        return is_mapped(8)
    raise AssertionError


def set_environment(environment: dict[str, str]) -> None:
    for name in [name for name in os.environ if name.startswith(("MALLOC_", "GLIBC_TUNABLES"))]:
        del os.environ[name]
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
        mapped, holds = process.submit(keep_and_let_go).result()
    assert mapped == [True, *[False] * 21, True]
    # Freed, still there, and taken again: small ones that come between may hold a gap or two open.
    assert 0.5 < holds[0] < 4
    assert holds[1] < 0.5


def test_what_is_freed_can_be_given_back_in_between(fresh: Callable[..., ProcessPoolExecutor]) -> None:
    with fresh() as process:
        kept, left, mapped = process.submit(give).result()
    assert kept > 3.5
    assert left < 0.5
    assert not mapped


def test_it_ends_when_something_goes_wrong(fresh: Callable[..., ProcessPoolExecutor]) -> None:
    with fresh() as process:
        assert process.submit(fail).result()


@pytest.mark.parametrize("name", ["MALLOC_ARENA_MAX", "GLIBC_TUNABLES"])
def test_settings_of_the_environment_are_left_alone(fresh: Callable[..., ProcessPoolExecutor], name: str) -> None:
    with fresh() as process, fresh(**{name: "2"}) as other:
        assert (process.submit(keep).result(), other.submit(keep).result()) == (False, True)
