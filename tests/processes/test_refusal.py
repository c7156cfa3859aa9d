"""What several processes refuse is said once where it is the same, and always where it is not."""

from __future__ import annotations

import signal
import subprocess
import sys
import threading
import time
from collections.abc import Mapping

import pytest
from torch.distributed import TCPStore

from ragstone.processes.environment import Place
from ragstone.processes.launch import LOOPBACK
from ragstone.processes.refusal import say_among, say_once


def spoken(messages: Mapping[int, str], size: int, seconds: float) -> list[int]:
    """The ranks that speak, where those of `messages` have something to say; a thread stands for a process."""
    store = TCPStore(LOOPBACK, 0, is_master=True, wait_for_workers=False)
    said: list[int] = []

    def refuse(rank: int) -> None:
        # The first is late, as a process is that has more to do.
        time.sleep(0.0 if rank else 0.2)
        say_among(messages[rank], lambda: said.append(rank), Place(rank, size, rank, size), store.clone(), seconds)

    threads = [threading.Thread(target=refuse, args=(rank,)) for rank in messages]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return sorted(said)


@pytest.mark.parametrize(
    ("messages", "ranks"),
    [
        ({0: "no file", 1: "no file", 2: "no file"}, [0]),
        ({0: "no file", 1: "no file", 2: "no memory"}, [0, 2]),
    ],
)
def test_all_refuse(messages: dict[int, str], ranks: list[int]) -> None:
    began = time.monotonic()
    assert spoken(messages, 3, 60) == ranks
    assert time.monotonic() - began < 30


@pytest.mark.parametrize("rank", [0, 1])
def test_one_refuses(rank: int) -> None:
    """It waits for the others in vain, and has spoken."""
    assert spoken({rank: "no file"}, 2, 0.5) == [rank]


STOPPED = f"""
import sys
from torch.distributed import TCPStore
from ragstone.processes.environment import Place
from ragstone.processes.refusal import say_among
store = TCPStore({LOOPBACK!r}, 0, is_master=True, wait_for_workers=False)
print("waits", flush=True)
say_among("no file", lambda: print("no file", flush=True), Place(1, 2, 1, 2), store, 60)
print("goes on", flush=True)
"""


def test_who_is_stopped_meanwhile_speaks() -> None:
    """As by torchrun, when another has ended otherwise."""
    with subprocess.Popen([sys.executable, "-c", STOPPED], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "waits\n"
        # The first one's message is waited for by then.
        time.sleep(1)
        process.send_signal(signal.SIGTERM)
        assert process.stdout.read() == "no file\ngoes on\n"


def test_nobody_to_ask(monkeypatch: pytest.MonkeyPatch) -> None:
    """Alone; under a launcher that keeps no store; with a store that has gone; in a senseless environment."""
    said: list[str] = []
    two = {"RANK": "1", "WORLD_SIZE": "2", "LOCAL_RANK": "1", "LOCAL_WORLD_SIZE": "2"}
    for more in ({}, two, {**two, "TORCHELASTIC_USE_AGENT_STORE": "True"}, {**two, "RANK": "x"}):
        for name, value in more.items():
            monkeypatch.setenv(name, value)
        say_once("no file", lambda: said.append("no file"))
    assert len(said) == 4
