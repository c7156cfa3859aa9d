"""Who is missing, by the beats of all."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from contextlib import closing

import pytest
from torch.distributed import TCPStore

from ragstone.processes.guard import Guard
from ragstone.processes.launch import LOOPBACK
from ragstone.processes.watch import INTERVAL, PATIENCE, Beat, Watch, missing_ranks


@pytest.mark.parametrize(
    ("before", "after", "missing"),
    [
        # The second no longer beats; that the third has come less far is no wonder then.
        ([Beat(3, 5), Beat(3, 5), Beat(3, 4)], [Beat(7, 5), Beat(3, 5), Beat(7, 4)], [1]),
        ([Beat(3, 5), None], [Beat(7, 5), None], [1]),
        # All beat: who has come less far hangs somewhere else.
        ([Beat(3, 5), Beat(3, 4), Beat(2, 5)], [Beat(7, 5), Beat(7, 4), Beat(6, 5)], [1]),
        # The first waits for the third's questions, the second for its own passages.
        ([Beat(3, 5), Beat(3, 6), Beat(2, 4)], [Beat(7, 5), Beat(7, 6), Beat(6, 4)], [2]),
        ([Beat(3, 5), Beat(3, 5)], [Beat(7, 6), Beat(7, 6)], []),
    ],
)
def test_missing_ranks(before: list[Beat | None], after: list[Beat | None], missing: list[int]) -> None:
    assert missing_ranks(before, after) == missing


def test_a_watch_sees_who_has_stopped() -> None:
    store = TCPStore(LOOPBACK, 0, is_master=True, wait_for_workers=False)
    watches = [Watch(store.clone(), rank, 3) for rank in range(3)]
    time.sleep(INTERVAL)
    watches[2].close()
    watches[1].advance()
    try:
        assert watches[0].missing() == [2]
    finally:
        watches[0].close()
        watches[1].close()


def test_who_is_through_is_not_taken_for_stopped() -> None:
    store = TCPStore(LOOPBACK, 0, is_master=True, wait_for_workers=False)
    watches = [Watch(store.clone(), rank, 3) for rank in range(3)]
    ended: list[list[int] | None] = []
    with closing(watches[0]), closing(Guard(watches[0], 2 * INTERVAL, ended.append)):
        with closing(watches[1]):
            watches[1].leave()
        time.sleep(4 * INTERVAL)
        assert ended == []
        watches[2].close()
        deadline = time.monotonic() + 60
        while not ended and time.monotonic() < deadline:
            time.sleep(0.1)
    assert ended == [[2]]


SERVER = f"""
import sys, time
from torch.distributed import TCPStore
store = TCPStore({LOOPBACK!r}, 0, is_master=True, wait_for_workers=False)
print(store.port, flush=True)
sys.stdin.read()
"""


def test_a_store_that_says_nothing_is_given_up() -> None:
    """As one behind a cut link: connected, but dumb."""
    with subprocess.Popen(
        [sys.executable, "-c", SERVER], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as server:
        assert server.stdout
        store = TCPStore(LOOPBACK, int(server.stdout.readline()), is_master=False, wait_for_workers=False)
        watch = Watch(store, 0, 1)
        os.kill(server.pid, signal.SIGSTOP)
        began = time.monotonic()
        try:
            assert watch.missing() is None
            # The store may answer once more before it stops; then it is asked again PATIENCE later.
            assert time.monotonic() - began < 3 * PATIENCE
        finally:
            server.kill()
