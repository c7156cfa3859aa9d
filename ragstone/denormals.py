"""Numbers that are too small for full precision, taken for zero.

Below 1.2e-38, float32 has ever fewer digits left (denormal numbers), and processors compute with such a number some
hundred times as long as with others. Training makes many: the gradients through a passage are smaller than its
posterior, by some powers of ten, and Adam's averages of a token that is not seen again fade until they stay there.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch


@contextmanager
def flushing_denormals() -> Iterator[None]:
    """Let the processor take denormal numbers for zero within the with-block, in this thread.

    A thread does as the one that starts it, and goes on so: entered before torch's first computation on several
    threads, it holds for all of them, and for those to the end. Processors that cannot do so are left as they are.
    """
    before = _flushes()
    torch.set_flush_denormal(True)
    try:
        yield
    finally:
        torch.set_flush_denormal(before)


def _flushes() -> bool:
    return bool(torch.tensor(1e-38, dtype=torch.float32, device="cpu") * 0.1 == 0)
