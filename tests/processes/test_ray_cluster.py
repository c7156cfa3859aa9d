"""Joining a Ray cluster: each connection in a process of its own, against a head that `ray start` has started."""

from __future__ import annotations

import http.server
import itertools
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil
import pytest

from ragstone.errors import LOST, InputError
from ragstone.processes.launch import GO_ON
from ragstone.processes.ray_cluster import RayCluster, refuse_without_ray

pytestmark = pytest.mark.xdist_group("ray")

CONNECT = """
import json, signal, sys
from ragstone.processes.ray_cluster import RayCluster
handler = signal.getsignal(signal.SIGTERM)
cluster = RayCluster(*sys.argv[1:])
import ray
second = RayCluster()
second.close()
told = {
    "address": cluster.address,
    "started": cluster.started,
    "sum": ray.get(ray.remote(lambda: sum([1, 2])).remote()),
    "handler kept": signal.getsignal(signal.SIGTERM) is handler,
}
cluster.close()
print(json.dumps({**told, "connected": ray.is_initialized()}))
"""


@pytest.fixture(scope="module")
def environment() -> Iterator[dict[str, str]]:
    """Variables that give Ray a folder and a token of its own; the folder's name is short, as its sockets need."""
    folder = Path(tempfile.mkdtemp(prefix="ray-", dir="/tmp"))
    (folder / ".ray").mkdir()
    (folder / ".ray" / "auth_token").write_text("a" * 64)
    kept = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    yield {**kept, "HOME": str(folder), "RAY_TMPDIR": str(folder), "OMP_NUM_THREADS": "1"}
    shutil.rmtree(folder)


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as server:
        return int(server.getsockname()[1])


def listens(address: str) -> bool:
    host, port = address.split(":")
    try:
        socket.create_connection((host, int(port)), timeout=1).close()
    except OSError:
        return False
    return True


def connect(environment: dict[str, str], *arguments: str, first: str = "") -> tuple[dict[str, Any], str]:
    """What a process that runs `first` and then connects tells, and its standard error."""
    command = [sys.executable, "-W", "error", "-c", first + CONNECT, *arguments]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False, timeout=120)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout), done.stderr


@pytest.mark.parametrize("first", ["", "import ray"])
def test_where_none_runs_a_local_one_is_started_and_ends(environment: dict[str, str], first: str) -> None:
    # Ray remembers a cluster that was killed. The one of the tests below is not there yet.
    folder = Path(environment["RAY_TMPDIR"]) / "ray"
    folder.mkdir(exist_ok=True)
    (folder / "ray_current_cluster").write_text(f"127.0.0.1:{free_port()}")
    told, err = connect(environment, first=first)
    address = told["address"]
    assert told == {"address": address, "started": True, "sum": 3, "handler kept": True, "connected": False}
    assert err == f"No Ray cluster is running here; a local one was started ({address}).\n"
    deadline = time.monotonic() + 30
    while listens(address) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert not listens(address)


@pytest.fixture(scope="module")
def head(environment: dict[str, str]) -> Iterator[str]:
    """Address of a cluster that asks for a token."""
    with started_head(environment) as (address, process):
        yield address
        process.send_signal(signal.SIGTERM)


@contextmanager
def started_head(environment: dict[str, str]) -> Iterator[tuple[str, subprocess.Popen[str]]]:
    """A cluster's head, by its address and the process whose SIGTERM ends it, which is waited for."""
    command = [str(Path(sys.executable).with_name("ray")), "start", "--head", "--block", "--num-cpus=1"]
    options = [f"--port={free_port()}", "--include-dashboard=false"]
    with subprocess.Popen([*command, *options], env=environment, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        told = "".join(itertools.takewhile(lambda line: "will now block" not in line, process.stdout))
        (address,) = re.findall(r"ray start --address='([0-9.:]+)'", told)
        yield address, process
        process.communicate(timeout=60)


def test_a_running_cluster_is_joined_and_left_running(environment: dict[str, str], head: str) -> None:
    expected = {"address": head, "started": False, "sum": 3, "handler kept": True, "connected": False}
    assert connect(environment, head) == (expected, "")
    assert connect({**environment, "RAY_ADDRESS": head}) == (expected, "")
    # Without an address, the one that runs on this machine is found; Ray tells where others run besides.
    told, _ = connect(environment)
    assert told == expected
    assert listens(head)


WORK = """
import json, sys, time
from ragstone.processes import ray_head
from ragstone.processes.ray_cluster import RayCluster
ray_head.PATIENCE = 2.0
cluster = RayCluster(**json.loads(sys.argv[1]))
print(json.dumps(cluster.contact), flush=True)
time.sleep(120)
"""


@contextmanager
def working(environment: dict[str, str], **arguments: Any) -> Iterator[tuple[list[Any], subprocess.Popen[str]]]:
    """A process on the cluster that a RayCluster of these arguments is; the contact to it."""
    command = [sys.executable, "-c", WORK, json.dumps(arguments)]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    with subprocess.Popen(command, env=environment, **pipes) as process:
        assert process.stdout is not None
        yield json.loads(process.stdout.readline()), process


def last_words(process: subprocess.Popen[str]) -> str:
    """What a process says that has lost its cluster."""
    assert process.stderr is not None
    said = process.stderr.read()
    assert process.wait(timeout=60) == LOST
    return said.splitlines()[-1]


@pytest.fixture
def own_environment(environment: dict[str, str]) -> Iterator[dict[str, str]]:
    """For a cluster besides that of the other tests."""
    folder = tempfile.mkdtemp(prefix="ray-", dir="/tmp")
    yield {**environment, "RAY_TMPDIR": folder}
    shutil.rmtree(folder, ignore_errors=True)


def test_a_head_that_is_gone_is_named(own_environment: dict[str, str]) -> None:
    """Ray's core would end the process a minute later, without a word."""
    again = "begin anew"
    with (
        started_head(own_environment) as (address, head),
        working(own_environment, address=address) as (_, training),
        working(own_environment, address=address, go_on=again) as (_, other),
    ):
        head.send_signal(signal.SIGTERM)
        for process, remedy in ((training, GO_ON), (other, again)):
            said = last_words(process)
            assert said.startswith(f"ragstone: The head of the Ray cluster at {address} has said nothing for 2 s (")
            assert said.endswith(f"); start it again, and then {remedy}.")


def test_the_head_of_a_local_cluster_is_not_to_be_started_again(own_environment: dict[str, str]) -> None:
    """Whoever of the run says it: the next command starts one of its own."""
    with (
        working(own_environment, address="local") as (contact, first),
        working(own_environment, contact=contact) as (_, second),
    ):
        (head,) = (child for child in psutil.Process(first.pid).children() if child.name() == "gcs_server")
        head.kill()
        for process in (first, second):
            said = last_words(process)
            assert said.startswith(f"ragstone: The head of the Ray cluster at {contact[0]} has said nothing for 2 s (")
            assert said.endswith(f"); {GO_ON}.")
            assert "start it again" not in said


@pytest.mark.slow
def test_a_cluster_that_does_not_let_one_in(environment: dict[str, str], head: str, tmp_path: Path) -> None:
    """Ray asks again for 20 s."""
    program = f"from ragstone.processes.ray_cluster import RayCluster\nRayCluster({head!r})"
    command = [sys.executable, "-c", program]
    stranger = {**environment, "HOME": str(tmp_path)}
    done = subprocess.run(command, env=stranger, capture_output=True, text=True, check=False, timeout=120)
    last = done.stderr.strip().splitlines()[-1]
    assert last.startswith(f"ragstone.errors.InputError: The Ray cluster at {head} cannot be used (")
    assert last.endswith("with the versions of Ray and Python and the token that it was started with.")


@pytest.fixture
def strangers() -> Iterator[dict[str, str]]:
    """Addresses where no cluster is: nobody, one who is silent, and a web server."""
    with (
        socket.create_server(("127.0.0.1", 0)) as silent,
        http.server.HTTPServer(("127.0.0.1", 0), http.server.SimpleHTTPRequestHandler) as web,
    ):
        threading.Thread(target=web.serve_forever).start()
        yield {
            "nobody": f"127.0.0.1:{free_port()}",
            "silent": f"127.0.0.1:{silent.getsockname()[1]}",
            "web": f"127.0.0.1:{web.server_port}",
            "no address": "127.0.0.1",
            "client": "ray://127.0.0.1:10001",
            "malformed": "head..lan:6379",
        }
        web.shutdown()


@pytest.mark.parametrize(
    ("who", "reason"),
    [
        ("nobody", "Connection refused"),
        ("silent", "nothing within 5 s"),
        ("web", "something else than Ray's head listens there"),
        ("no address", "an address is host:port"),
        ("client", "an address is host:port"),
        ("malformed", "no host can be called so"),
    ],
)
def test_where_no_cluster_answers(strangers: dict[str, str], who: str, reason: str) -> None:
    began = time.monotonic()
    with pytest.raises(InputError) as refused:
        RayCluster(strangers[who])
    assert str(refused.value) == (
        f"No Ray cluster answers at {strangers[who]} ({reason}); start one there with ray start --head, or leave "
        "--ray_address out."
    )
    assert time.monotonic() - began < 15


def test_an_address_in_the_environment_that_nobody_answers(monkeypatch: pytest.MonkeyPatch) -> None:
    address = f"127.0.0.1:{free_port()}"
    monkeypatch.setenv("RAY_ADDRESS", address)
    with pytest.raises(InputError, match=f"No Ray cluster answers at {address} .*, or unset RAY_ADDRESS"):
        RayCluster()


def test_without_ray(monkeypatch: pytest.MonkeyPatch) -> None:
    refuse_without_ray("--ray")
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(InputError, match=r"^--ray needs Ray: pip install 'ragstone\[ray\]'\.$"):
        refuse_without_ray("--ray")
