"""Dividing things among processes, and putting them together again."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ragstone.errors import InputError
from ragstone.processes.environment import Place
from ragstone.processes.processes import OneProcess, part_of, whole_of


@given(count=st.integers(1, 40), size=st.integers(1, 9))
def test_parts_are_equally_long_and_make_the_whole(count: int, size: int) -> None:
    items = [f"item {number}" for number in range(count)]
    parts = [part_of(items, Place(rank, size, rank, size)) for rank in range(size)]
    assert {len(part) for part in parts} == {-(-count // size)}
    assert whole_of([[item.upper() for item in part] for part in parts], count) == [item.upper() for item in items]
    # Only the shortest fill: no item is anywhere twice but the first.
    others = [item for part in parts for item in part if item != items[0]]
    assert sorted(others) == sorted(items[1:])


def test_one_process_exchanges_nothing() -> None:
    alone = OneProcess()
    assert alone.share({"a": 1}) == {"a": 1}
    assert alone.gather("b") == ["b"]
    assert alone.on_first(lambda: 3) == 3

    def refuse() -> None:
        raise InputError("no")

    with pytest.raises(InputError, match="no"):
        alone.on_first(refuse)
