"""A look at the other processes by a thread, for a process whose main thread may wait for ever.

Nothing interrupts a thread that waits for a GPU, which waits for another process's gradients. NCCL ends such a process
after a time-out, whoever it was that did not come.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence

from ragstone.processes.watch import LEFT, PATIENCE, Beat, Watch, silent_ranks

PAUSE = 10.0
"""Seconds between two looks, at most."""


class Guard:
    """Looks at the others until it is closed."""

    def __init__(self, watch: Watch, timeout: float, end: Callable[[list[int] | None], None]) -> None:
        """Call `end`, in another thread, when others have been stopped for `timeout` seconds.

        Args:
            watch: on the processes.
            timeout: see above; at least PATIENCE, and some seconds more may pass.
            end: gets the ranks that are stopped, or None where the first process's host was out of reach for so long.
        """
        self._watch = watch
        self._timeout = max(timeout, PATIENCE)
        self._end = end
        self._closed = threading.Event()
        self._thread = threading.Thread(target=self._look_on, name="guard", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Look no more."""
        self._closed.set()
        self._thread.join()

    def _look_on(self) -> None:
        before: Sequence[Beat | None] = []
        since: dict[int | None, float] = {}
        while not self._closed.wait(min(PAUSE, self._timeout / 10)):
            beats, now = self._watch.look(), time.monotonic()
            if beats is None:
                silent: list[int | None] = [None]
            else:
                others = [rank for rank in silent_ranks(before or beats, beats) if rank != self._watch.rank]
                silent = [rank for rank in others if not _is_through(beats[rank])]
                before = beats
            since = {rank: since.get(rank, now) for rank in silent}
            lost = [rank for rank, began in since.items() if now - began >= self._timeout]
            if lost:
                self._end(None if beats is None else [rank for rank in lost if rank is not None])
                return


def _is_through(beat: Beat | None) -> bool:
    return beat is not None and beat.beats == LEFT
