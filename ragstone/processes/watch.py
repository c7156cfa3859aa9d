"""Which process of a run is missing, when a message between them fails.

Every process writes a beat into the run's store once a second: how often it has written, and how many exchanges it has
come to. A process that is dead or stopped no longer beats; one that hangs elsewhere has come less far than all others.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Sequence
from contextlib import suppress
from datetime import timedelta
from typing import Any, NamedTuple

INTERVAL = 1.0
"""Seconds between two beats."""
LEFT = -1
"""The number of a process's last beat, when it is through."""
PATIENCE = 4.0
"""Seconds in which a living process must have beaten, and in which the store must answer."""


class Beat(NamedTuple):
    """What a process has written last."""

    beats: int
    position: int


class Watch:
    """This process's beat, and a look at those of the others."""

    def __init__(self, store: Any, rank: int, size: int) -> None:
        """`store` is torch's, shared by the run's processes and reached by nobody else through this object."""
        self._store = store
        self._store.set_timeout(timedelta(seconds=PATIENCE))
        self.rank = rank
        self._size = size
        self._position = 0
        self._leaves = False
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._beat, name="watch", daemon=True)
        self._thread.start()

    def advance(self) -> None:
        """This process has come to its next exchange."""
        self._position += 1

    def leave(self) -> None:
        """This process is through, and has not failed: when it stops beating, it says so."""
        self._leaves = True

    def close(self) -> None:
        """Stop beating."""
        self._ended.set()
        self._thread.join(PATIENCE)

    def missing(self) -> list[int] | None:
        """The ranks that nothing more comes from; None where the store does not answer. Takes PATIENCE seconds."""
        before = self.look()
        if before is None:
            return None
        time.sleep(PATIENCE)
        after = self.look()
        return None if after is None else missing_ranks(before, after)

    def look(self) -> list[Beat | None] | None:
        """All beats by rank; None where the store does not answer within PATIENCE seconds."""
        found: list[Beat | None] = []

        def read() -> None:
            with suppress(RuntimeError):
                for rank in range(self._size):
                    key = _key(rank)
                    words = self._store.get(key).split() if self._store.check([key]) else None
                    found.append(None if words is None else Beat(int(words[0]), int(words[1])))

        # In a thread of its own, since a store behind a cut link never answers.
        reader = threading.Thread(target=read, name="look", daemon=True)
        reader.start()
        reader.join(PATIENCE)
        return found if len(found) == self._size else None

    def _beat(self) -> None:
        count = 0
        # The store may have gone: the run is ending, or its first host is out of reach.
        with suppress(RuntimeError):
            while not self._ended.is_set():
                count += 1
                self._store.set(_key(self.rank), f"{count} {self._position}")
                self._ended.wait(INTERVAL)
            if self._leaves:
                self._store.set(_key(self.rank), f"{LEFT} {self._position}")


def missing_ranks(before: Sequence[Beat | None], after: Sequence[Beat | None]) -> list[int]:
    """The ranks whose beat stands still between two looks; where all beat, those that have come least far.

    Who waits for a message may have come less far than another, which waits for a later one, but not least far.

    Args:
        before: beats by rank; None for one that has never beaten.
        after: the same, PATIENCE seconds later.
    """
    silent = silent_ranks(before, after)
    if silent:
        return silent
    positions = [beat.position for beat in after if beat is not None]
    return [rank for rank, position in enumerate(positions) if position == min(positions) < max(positions)]


def silent_ranks(before: Sequence[Beat | None], after: Sequence[Beat | None]) -> list[int]:
    """The ranks whose beat stands still between two looks."""
    return [rank for rank, (old, new) in enumerate(zip(before, after, strict=True)) if new is None or old == new]


def _key(rank: int) -> str:
    return f"beat/{rank}"
