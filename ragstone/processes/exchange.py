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

LENGTH_BYTES = 8
FIRST_ROOM = 4096
"""Bytes of content for which a message has room before anything is known of it, and of which rooms are multiples."""


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


class Post:
    """Sends messages to each other process of a group, and receives theirs.

    A message goes out in one piece, whose length both sides know from the message before; what is longer comes in a
    second one. Batches are alike, so that there seldom is one, and nobody waits for a length before the content.
    """

    def __init__(self, group: Any) -> None:
        self._group = group
        self._sent: dict[int, int] = {}
        self._received: dict[int, int] = {}
        """Rank to the bytes of content that the next first piece has room for."""

    def send(self, message: Bytes, to: int) -> Callable[[], None]:
        """Begin to send a message to the process of rank `to`, which calls `receive`.

        Returns:
            What waits until it is sent. The message must not change before.
        """
        room = self._sent.get(to, FIRST_ROOM)
        piece = np.empty(LENGTH_BYTES + room, dtype=np.uint8)
        piece[:LENGTH_BYTES] = np.array([len(message)], dtype=np.int64).view(np.uint8)
        fitting = min(room, len(message))
        piece[LENGTH_BYTES : LENGTH_BYTES + fitting] = message[:fitting]
        pieces = [piece, message[room:]] if len(message) > room else [piece]
        self._sent[to] = _room(len(message))
        sent = [dist.isend(torch.from_numpy(part), group_dst=to, group=self._group) for part in pieces]

        def wait() -> None:
            for work in sent:
                if work is not None:
                    work.wait()

        return wait

    def receive(self, source: int) -> Bytes:
        """Receive what the process of rank `source` sends."""
        room = self._received.get(source, FIRST_ROOM)
        piece = torch.empty(LENGTH_BYTES + room, dtype=torch.uint8)
        dist.recv(piece, group_src=source, group=self._group)
        first = piece.numpy()
        length = int(first[:LENGTH_BYTES].view(np.int64)[0])
        self._received[source] = _room(length)
        content = first[LENGTH_BYTES:]
        if length <= room:
            return content[:length]
        message = np.empty(length, dtype=np.uint8)
        message[:room] = content
        dist.recv(torch.from_numpy(message[room:]), group_src=source, group=self._group)
        return message


def _room(length: int) -> int:
    """Room for a message like one of `length` bytes: an eighth more, so that most of those to come fit in."""
    return max(FIRST_ROOM, -(-(length + length // 8) // FIRST_ROOM) * FIRST_ROOM)
