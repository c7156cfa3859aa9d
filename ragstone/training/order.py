"""The order in which training sees its examples: shuffled anew each epoch, the same for the same seed and place."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TypeVar

import torch

Item = TypeVar("Item")


def epoch_batches(
    examples: Sequence[Item], batch_size: int, seed: int, epoch: int, first: int = 0
) -> Iterator[list[Item]]:
    """The batches of an epoch from batch `first` on; the last one may be smaller.

    The order depends on seed and epoch alone, so that a resumed run goes on where it stopped.
    """
    generator = torch.Generator().manual_seed(seed * 1_000_003 + epoch)
    order = torch.randperm(len(examples), generator=generator).tolist()
    for start in range(first * batch_size, len(order), batch_size):
        yield [examples[i] for i in order[start : start + batch_size]]
