"""Refusals of processes that torchrun started: what all of them say alike is said once.

Each process finds bad input for itself, most of it before they have met. So they compare what they are about to say
through the store at which they would meet, which torchrun's agent keeps for as long as the run lasts.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Sequence
from datetime import timedelta
from typing import Any

from ragstone.errors import InputError
from ragstone.interrupt import stop_like_interrupt
from ragstone.processes.environment import Place, place

SECONDS = 10.0
"""That the first process may come later than the others to its refusal, if it comes to one."""
PAUSE = 0.05
"""Seconds between two looks into the store."""
AGENT = "TORCHELASTIC_USE_AGENT_STORE"


def say_once(message: str, say: Callable[[], None]) -> None:
    """Call `say`, but not where the first process says the same `message` about this run.

    A message is never lost: where the others cannot be asked or do not answer in time, or torchrun stops this process
    meanwhile, since another has ended, it is said.
    """
    try:
        where = place()
    except InputError:
        where = Place()
    if where.size == 1 or os.environ.get(AGENT) != "True":
        say()
        return
    from torch.distributed import TCPStore  # type: ignore[attr-defined]
    from torch.distributed.distributed_c10d import PrefixStore

    try:
        address = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
        store = TCPStore(*address, is_master=False, timeout=timedelta(seconds=SECONDS))
    except (RuntimeError, KeyError, ValueError):
        say()
        return
    attempt = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")
    say_among(message, say, where, PrefixStore(f"refusal/{attempt}", store), SECONDS)


def say_among(message: str, say: Callable[[], None], where: Place, store: Any, seconds: float) -> None:
    """See say_once. `store` is torch's, one that the processes share for this alone.

    Returns when all have said theirs, for torchrun stops the others once one has ended; or after `seconds`.
    """
    said = heard = False
    try:
        with stop_like_interrupt():
            if where.is_first:
                store.set("first", message)
            else:
                _wait(store, ["first"], seconds)
            heard = not where.is_first and store.get("first").decode() == message
            if not heard:
                said = True
                say()
            store.set(f"done/{where.rank}", "")
            _wait(store, [f"done/{rank}" for rank in range(where.size)], seconds)
    except (RuntimeError, TimeoutError, KeyboardInterrupt):
        # The store has gone, nobody else refuses anything, or torchrun has stopped this process.
        if not (said or heard):
            say()


def _wait(store: Any, keys: Sequence[str], seconds: float) -> None:
    """Wait for `keys`; the store's own way of waiting hears no signals."""
    deadline = time.monotonic() + seconds
    while not store.check(keys):
        if time.monotonic() > deadline:
            raise TimeoutError(f"{', '.join(keys)} did not come within {seconds:g} s")
        time.sleep(PAUSE)
