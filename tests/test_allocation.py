"""Freed memory that is kept, by glibc's own count."""

from __future__ import annotations

import ctypes
from pathlib import Path

import pytest
import torch

from ragstone.allocation import keeping_freed_memory

BLOCK = 2**26
"""Bytes, more than glibc ever takes from its heap by itself."""
NAMES = ("arena", "ordblks", "smblks", "hblks", "hblkhd", "usmblks", "fsmblks", "uordblks", "fordblks", "keepcost")


class Mallinfo2(ctypes.Structure):
    _fields_ = [(name, ctypes.c_size_t) for name in NAMES]


def malloc_says(name: str) -> int:
    """One of the numbers that malloc counts: bytes of its heap (arena), or blocks that are mapped (hblks)."""
    libc = ctypes.CDLL(None)
    if not hasattr(libc, "mallinfo2"):
        pytest.skip("not glibc 2.33 or later")
    libc.mallinfo2.restype = Mallinfo2
    return int(getattr(libc.mallinfo2(), name))


def is_mapped() -> bool:
    """Whether a large block is mapped for itself."""
    before = malloc_says("hblks")
    block = torch.empty(BLOCK, dtype=torch.uint8)
    mapped = malloc_says("hblks") - before
    del block
    return mapped == 1


@pytest.fixture(autouse=True)
def as_without_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MALLOC_ARENA_MAX", raising=False)
    monkeypatch.delenv("GLIBC_TUNABLES", raising=False)


def test_large_blocks_stay_until_the_end() -> None:
    assert is_mapped()
    before = malloc_says("arena")
    with keeping_freed_memory():
        for _ in range(20):
            assert not is_mapped()
        with keeping_freed_memory():
            pass
        # Freed, still there, and taken again: small ones that come between may hold a gap or two open.
        assert BLOCK // 2 < malloc_says("arena") - before < 4 * BLOCK
    assert malloc_says("arena") - before < BLOCK // 2
    assert is_mapped()


def test_it_ends_when_something_goes_wrong() -> None:
    with pytest.raises(FileNotFoundError), keeping_freed_memory():
        Path("/nowhere").stat()
    assert is_mapped()


@pytest.mark.parametrize("name", ["MALLOC_ARENA_MAX", "GLIBC_TUNABLES"])
def test_settings_of_the_environment_are_left_alone(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.setenv(name, "2")
    with keeping_freed_memory():
        assert is_mapped()
