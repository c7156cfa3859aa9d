"""Messages of any length between real processes, in one piece or two."""

from __future__ import annotations

import hashlib

import numpy as np
import torch

from ragstone.processes.exchange import FIRST_ROOM, Bytes
from ragstone.processes.group import ProcessGroup, joined
from ragstone.processes.launch import launch

LENGTHS = (0, 1, FIRST_ROOM, FIRST_ROOM + 1, 100_000, 3, 112_000, 113_000, 200_000, 0, FIRST_ROOM - 1, 300_001, 5)
"""Such as fit, such as just fit and just do not, much longer and much shorter ones than the message before."""


def message(sender: int, number: int) -> Bytes:
    return np.random.default_rng(100 * sender + number).integers(0, 256, LENGTHS[number], dtype=np.uint8)


def digest(content: Bytes) -> str:
    return hashlib.sha256(content.tobytes()).hexdigest()


def exchange(_: object) -> dict[str, list[list[str]]]:
    """Both send all messages to each other; what each received."""
    with joined(torch.device("cpu"), 60) as processes:
        assert isinstance(processes, ProcessGroup)
        rank = processes.place.rank
        received = []
        for number in range(len(LENGTHS)):
            wait = processes.send(message(rank, number), to=1 - rank)
            received.append(digest(processes.receive(1 - rank)))
            wait()
        return {"received": processes.gather(received)}


def test_messages_arrive_whole_and_in_order() -> None:
    found = launch(exchange, None, 2, None)["received"]
    expected = [[digest(message(sender, number)) for number in range(len(LENGTHS))] for sender in (1, 0)]
    assert found == expected
