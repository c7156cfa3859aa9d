"""A look at the head of a Ray cluster, for a process that works on it.

Where the head is gone, Ray's core ends the process after a minute, without a word and past everything that Python would
still do.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

PAUSE = 5.0
"""Seconds between two looks."""
PATIENCE = 40.0
"""Seconds of silence after which the head is taken for gone; at 60 Ray's core ends the process."""


class HeadWatch:
    """Looks at the head until it is closed."""

    def __init__(self, silence: Callable[[], str | None], end: Callable[[str], None], patience: float) -> None:
        """Call `end`, in another thread, with the reason when the head has been silent for `patience` seconds.

        Args:
            silence: tells why the head does not answer, within some seconds; None where it does.
            end: see above.
            patience: see above.
        """
        self._silence = silence
        self._end = end
        self._patience = patience
        self._closed = threading.Event()
        self._thread = threading.Thread(target=self._look_on, name="ray-head", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Look no more."""
        self._closed.set()
        self._thread.join()

    def _look_on(self) -> None:
        # From the first look in vain: before it, this process itself may have been stopped for long.
        since: float | None = None
        while not self._closed.wait(min(PAUSE, self._patience / 4)):
            reason = self._silence()
            if reason is None:
                since = None
            elif since is None:
                since = time.monotonic()
            elif time.monotonic() - since >= self._patience:
                self._end(reason)
                return
