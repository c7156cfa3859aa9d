"""The order of training examples."""

from __future__ import annotations

from collections.abc import Iterable
from itertools import chain

from ragstone.training.order import epoch_batches

ITEMS = list(range(23))


def flat(batches: Iterable[list[int]]) -> list[int]:
    return list(chain.from_iterable(batches))


def test_an_epoch_has_every_example_once_in_batches() -> None:
    batches = list(epoch_batches(ITEMS, 5, seed=1, epoch=0))
    assert [len(batch) for batch in batches] == [5, 5, 5, 5, 3]
    assert sorted(flat(batches)) == ITEMS
    assert flat(batches) != ITEMS


def test_the_order_depends_on_seed_and_epoch_alone() -> None:
    orders = {(seed, epoch): list(epoch_batches(ITEMS, 5, seed, epoch)) for seed in (1, 2) for epoch in (0, 1, 2)}
    assert len({str(order) for order in orders.values()}) == 6
    assert list(epoch_batches(ITEMS, 5, 2, 1)) == orders[2, 1]
    assert flat(epoch_batches(ITEMS, 4, 2, 1)) == flat(orders[2, 1])


def test_going_on_in_the_middle() -> None:
    whole = list(epoch_batches(ITEMS, 5, 1, 3))
    assert [list(epoch_batches(ITEMS, 5, 1, 3, first)) for first in range(6)] == [whole[first:] for first in range(6)]
