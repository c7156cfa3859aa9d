"""Messages of any length between the processes of a gloo group.

Every function that says "all" must be called by all processes of the group in the same order.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
import torch.distributed as dist

Bytes = npt.NDArray[np.uint8]


def gather_bytes(message: bytes, group: Any) -> list[bytes]:
    """Give every process all processes' messages, by rank. All call it."""
    size = dist.get_world_size(group)
    lengths = torch.zeros(size, dtype=torch.int64)
    lengths[dist.get_rank(group)] = len(message)
    dist.all_reduce(lengths, group=group)
    longest = int(lengths.max())
    padded = np.zeros(max(1, longest), dtype=np.uint8)
    padded[: len(message)] = np.frombuffer(message, dtype=np.uint8)
    received = [torch.empty(len(padded), dtype=torch.uint8) for _ in range(size)]
    dist.all_gather(received, torch.from_numpy(padded), group=group)
    return [found[: int(length)].numpy().tobytes() for found, length in zip(received, lengths, strict=True)]


def send_bytes(message: Bytes, to: int, group: Any) -> Callable[[], None]:
    """Begin to send a message to one process, which calls `receive_bytes`.

    Returns:
        What waits until it is sent. The message must not change before.
    """
    length, content = torch.tensor([len(message)]), torch.from_numpy(message)
    sent = [dist.isend(part, group_dst=to, group=group) for part in (length, content) if len(part)]

    def wait() -> None:
        for work in sent:
            if work is not None:
                work.wait()

    return wait


def receive_bytes(source: int, group: Any) -> Bytes:
    """Receive what one process sends with `send_bytes`."""
    length = torch.zeros(1, dtype=torch.int64)
    dist.recv(length, group_src=source, group=group)
    message = torch.empty(int(length), dtype=torch.uint8)
    if len(message):
        dist.recv(message, group_src=source, group=group)
    return message.numpy()
