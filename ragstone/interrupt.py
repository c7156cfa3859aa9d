"""Being stopped from outside, so that nothing half-written stays behind."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def stop_like_interrupt() -> Iterator[None]:
    """Let SIGTERM end the with-block as Ctrl-C does."""
    if threading.current_thread() is not threading.main_thread():
        # Only the main thread may ask for signals.
        yield
        return

    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    previous = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, previous)
