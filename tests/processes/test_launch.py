"""Real processes: what they return, and how a run ends when one of them fails, dies, or hangs."""

from __future__ import annotations

import os
import signal
import socket
import time
from contextlib import closing
from pathlib import Path

import pytest
import torch
import torch.distributed as dist

from ragstone.errors import InputError, LostError
from ragstone.processes.group import ProcessGroup, joined
from ragstone.processes.launch import LOOPBACK, launch

TIMEOUT = 4.0
SECONDS_TO_START = 15


def exchange(port: int) -> dict[str, object]:
    """What every process does."""
    with joined(torch.device("cpu"), 60) as processes:
        rank = processes.place.rank
        gathered = processes.gather({"rank": rank, "text": "ä" * 1000 * rank})
        shared = processes.share(["only", rank])
        seen: list[int] = []
        first = processes.on_first(lambda: seen.append(rank) or rank)
        return {
            "place": [
                processes.place.rank,
                processes.place.size,
                processes.place.local_rank,
                processes.place.local_size,
            ],
            "gathered": gathered,
            "shared": shared,
            "first": [first, seen],
            "threads": [os.environ["OMP_NUM_THREADS"], os.environ.get("OMP_WAIT_POLICY")],
            "port": port == int(os.environ["MASTER_PORT"]),
            "interface": os.environ["GLOO_SOCKET_IFNAME"],
            "apart": processes._group is not dist.group.WORLD and dist.get_backend(processes._group) == "gloo",
        }


def fail(task: tuple[str, int]) -> None:
    """What every process does, until the one of a rank fails in some way."""
    how, failing = task
    with joined(torch.device("cpu"), TIMEOUT) as processes:
        rank = processes.place.rank
        if how == "refused":
            processes.on_first(refuse)
        if how == "terminated":
            os.kill(os.getpid(), signal.SIGTERM)
        if how == "folder":
            processes.on_first(lambda: Path("/nowhere/folder").mkdir())
        if rank == failing:
            if how == "input":
                raise InputError("The second process was given nothing.")
            if how == "bug":
                raise ZeroDivisionError("a bug")
            if how == "silent":
                os._exit(7)
            if how == "killed":
                os.kill(os.getpid(), signal.SIGKILL)
            if how == "full":
                Path("/nowhere/file").write_text("")
            if how in ("stopped", "stopped in the middle"):
                os.kill(os.getpid(), signal.SIGSTOP)
            if how == "hanging":
                time.sleep(60)
        if how == "stopped in the middle":
            assert isinstance(processes, ProcessGroup)
            # As one waits for a GPU: nothing but its guard can end it.
            with closing(processes.guard()):
                signal.signal(signal.SIGTERM, signal.SIG_IGN)
                time.sleep(600)
        processes.gather(rank)


def refuse() -> None:
    raise InputError("The first process refuses.")


@pytest.fixture(autouse=True)
def no_threads_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("OMP_NUM_THREADS", "OMP_WAIT_POLICY"):
        monkeypatch.delenv(name, raising=False)


def free_port() -> int:
    with socket.socket() as found:
        found.bind((LOOPBACK, 0))
        return int(found.getsockname()[1])


def test_a_port_that_is_in_use_is_refused() -> None:
    with socket.socket() as other:
        other.bind((LOOPBACK, 0))
        other.listen()
        port = other.getsockname()[1]
        with pytest.raises(InputError, match=rf"--distributed_port {port} cannot be used \(Address already in use\)"):
            launch(exchange, port, 2, port)


def test_processes_exchange_messages_and_the_first_ones_result_comes_back() -> None:
    handlers = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
    share = len(os.sched_getaffinity(0)) // 2
    port = free_port()
    result = launch(exchange, port, 2, port)
    assert result == {
        "place": [0, 2, 0, 2],
        "gathered": [{"rank": 0, "text": ""}, {"rank": 1, "text": "ä" * 1000}],
        "shared": ["only", 0],
        "first": [0, [0]],
        "threads": ["1", "PASSIVE"] if share <= 1 else [str(share), None],
        "port": True,
        "interface": "lo",
        "apart": True,
    }
    assert [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)] == handlers
    assert {"OMP_NUM_THREADS", "OMP_WAIT_POLICY"}.isdisjoint(os.environ)


@pytest.mark.parametrize(
    ("how", "rank", "error", "message"),
    [
        ("refused", 0, InputError, r"^The first process refuses\.$"),
        ("input", 1, InputError, r"^The second process was given nothing\.$"),
        ("bug", 1, RuntimeError, r"Rank 1 failed: ZeroDivisionError: a bug\n(?s:.*)in fail"),
        ("full", 1, InputError, r"^/nowhere/file: No such file or directory\.$"),
        ("folder", 0, InputError, r"^/nowhere/folder: No such file or directory\.$"),
        ("terminated", 0, LostError, r"Rank [01] \(process \d+\) was ended by SIGTERM"),
        ("silent", 1, LostError, r"Rank 1 \(process \d+\) ended with exit code 7 without saying why"),
        ("killed", 1, LostError, r"Rank 1 \(process \d+\) was ended by SIGKILL"),
        ("killed", 0, LostError, r"Rank 0 \(process \d+\) was ended by SIGKILL"),
        ("hanging", 1, LostError, r"Rank 0 waited in vain \(time-out 4 s\): rank 1 is gone or stopped"),
        pytest.param(
            "stopped in the middle", 1, LostError, r"Rank 0 waited .*: rank 1 is gone", marks=pytest.mark.slow
        ),
        pytest.param(
            "stopped in the middle", 0, LostError, r"Rank 1 waited .*: rank 0 is gone", marks=pytest.mark.slow
        ),
        pytest.param("stopped", 1, LostError, "rank 1 is gone or stopped", marks=pytest.mark.slow),
        pytest.param("stopped", 0, LostError, "rank 0 is gone or stopped", marks=pytest.mark.slow),
    ],
)
def test_the_failure_of_one_ends_all_and_is_told(how: str, rank: int, error: type[Exception], message: str) -> None:
    began = time.monotonic()
    with pytest.raises(error, match=message):
        launch(fail, (how, rank), 2)
    # The time-out and, as the documentation says, up to 45 s: a look at who is missing, and for one that does not
    # react to SIGTERM half a minute until SIGKILL. Starting the processes, which comes before, takes some seconds.
    assert time.monotonic() - began < TIMEOUT + 45 + SECONDS_TO_START


@pytest.mark.parametrize(
    ("address", "message"),
    [
        ("127.0.0.2", "first process's address 127.0.0.2 is 127.0.0.2 on this host, which no other host reaches"),
        ("head..lan", r"first process's address head\.\.lan:29500 leads nowhere .* \(no host can be called so\); give"),
        ("nowhere.invalid", "first process's address nowhere.invalid:29500 leads nowhere from this host"),
    ],
)
def test_an_address_that_other_hosts_cannot_reach(monkeypatch: pytest.MonkeyPatch, address: str, message: str) -> None:
    """As where a host's own name stands in /etc/hosts with a loopback address."""
    monkeypatch.delenv("GLOO_SOCKET_IFNAME", raising=False)
    two_hosts = {"RANK": "0", "WORLD_SIZE": "2", "LOCAL_RANK": "0", "LOCAL_WORLD_SIZE": "1"}
    for name, value in {**two_hosts, "MASTER_ADDR": address, "MASTER_PORT": "29500"}.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(InputError, match=message), joined(torch.device("cpu"), TIMEOUT):
        pass
