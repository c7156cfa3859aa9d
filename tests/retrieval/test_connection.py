"""Requests over connections, plain and encrypted: real sockets, with a server here or in a process that is killed."""

from __future__ import annotations

import os
import signal
import socket
import ssl
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, suppress
from dataclasses import replace
from pathlib import Path

import pytest

from ragstone.errors import InputError
from ragstone.processes.ray_cluster import encrypts
from ragstone.retrieval.connection import KEY_BYTES, Address, Connection, Server
from tests.retrieval.conftest import make_certificates

HOST = "127.0.0.1"
ELSEWHERE = """
import sys, time
from ragstone.retrieval.connection import Server
address = Server("127.0.0.1", lambda request: request * 2).address
print(address.port, address.key.hex(), flush=True)
time.sleep(600)
"""


def answer(request: bytearray) -> bytes:
    if request == b"refuse":
        raise InputError("It is no good; bring another.")
    if request == b"fail":
        raise KeyError("nothing of that name")
    return bytes(request[::-1])


def stop(process: subprocess.Popen[str]) -> None:
    """Until it goes on, or is killed."""
    process.send_signal(signal.SIGSTOP)
    os.waitpid(process.pid, os.WUNTRACED)


def ask(connection: Connection, request: bytes) -> bytes:
    connection.send(request, 10)
    assert connection.answers_within(10)
    return bytes(connection.receive(10).opened())


@pytest.fixture(autouse=True, params=["plain", "encrypted"])
def ways(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch, certificates: dict[str, str]) -> str:
    """Everything below holds for both."""
    if request.param == "encrypted":
        for name, value in certificates.items():
            monkeypatch.setenv(name, value)
    return str(request.param)


@pytest.fixture
def server() -> Server:
    return Server(HOST, answer)


@pytest.fixture
def elsewhere() -> Iterator[tuple[Address, subprocess.Popen[str]]]:
    """A server in a process of its own, which answers with what it is asked, twice."""
    with subprocess.Popen([sys.executable, "-c", ELSEWHERE], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        port, key = process.stdout.readline().split()
        yield Address(HOST, int(port), bytes.fromhex(key)), process
        process.kill()


@pytest.mark.parametrize("size", [0, 1, 1000, 3_000_000])
def test_bytes_come_back_as_they_were_sent(server: Server, size: int) -> None:
    with closing(Connection(server.address, 10)) as connection:
        for _ in range(2):
            request = os.urandom(size)
            assert ask(connection, request) == request[::-1]


def test_what_the_other_side_raises(server: Server) -> None:
    """The connection serves further requests."""
    with closing(Connection(server.address, 10)) as connection:
        with pytest.raises(InputError, match=r"^It is no good; bring another\.$"):
            ask(connection, b"refuse")
        with pytest.raises(RuntimeError, match=r"(?s)^A retrieval worker failed:\nTraceback .*nothing of that name"):
            ask(connection, b"fail")
        assert ask(connection, b"abc") == b"cba"


def test_requests_are_answered_one_at_a_time() -> None:
    """However many ask."""
    running, most = 0, 0

    def slow(request: bytearray) -> bytearray:
        nonlocal running, most
        running += 1
        most = max(most, running)
        time.sleep(0.01)
        running -= 1
        return request

    address = Server(HOST, slow).address

    def ask_some(number: int) -> list[bytes]:
        with closing(Connection(address, 10)) as connection:
            return [ask(connection, b"%d-%d" % (number, i)) for i in range(5)]

    with ThreadPoolExecutor(4) as pool:
        answers = list(pool.map(ask_some, range(4)))
    assert answers == [[b"%d-%d" % (number, i) for i in range(5)] for number in range(4)]
    assert most == 1


def test_who_does_not_have_the_key_gets_nothing(server: Server) -> None:
    with pytest.raises(OSError):
        Connection(replace(server.address, key=bytes(KEY_BYTES)), 10)
    assert str(server.address) == f"{HOST}:{server.address.port}"


def test_who_says_nothing_does_not_keep_others_waiting(server: Server) -> None:
    silent = socket.create_connection((server.address.host, server.address.port))
    with silent, closing(Connection(server.address, 10)) as connection:
        assert ask(connection, b"abc") == b"cba"


def test_whoever_has_gone_leaves_no_thread(server: Server) -> None:
    def serving() -> int:
        return sum(thread.name == "retrieval" for thread in threading.enumerate())

    with closing(Connection(server.address, 10)) as connection:
        ask(connection, b"abc")
        assert serving() > 0
    deadline = time.monotonic() + 30
    while serving() > 0 and time.monotonic() < deadline:
        time.sleep(0.01)
    assert serving() == 0


def test_a_process_that_is_killed_is_noticed_at_once(elsewhere: tuple[Address, subprocess.Popen[str]]) -> None:
    address, process = elsewhere
    with closing(Connection(address, 10)) as connection:
        assert ask(connection, b"ab") == b"abab"
        stop(process)
        connection.send(b"ab", 10)
        assert not connection.answers_within(0.2)
        process.kill()
        assert connection.answers_within(30)
        with pytest.raises(OSError):
            connection.receive(10)
    process.wait()
    with pytest.raises(OSError):
        Connection(address, 10)


def test_a_process_that_takes_nothing_is_not_waited_for(elsewhere: tuple[Address, subprocess.Popen[str]]) -> None:
    """Its system takes as much as fits into its buffers."""
    address, process = elsewhere
    with closing(Connection(address, 10)) as connection:
        stop(process)
        with pytest.raises(TimeoutError):
            connection.send(bytes(100_000_000), 0.5)


def test_what_goes_over_the_wire(server: Server, ways: str) -> None:
    """The key and the request, for everybody to read, or neither."""
    with socket.create_server((HOST, 0)) as relay, ThreadPoolExecutor(2) as pool:
        seen = pool.submit(relayed, relay, server.address)
        address = replace(server.address, port=relay.getsockname()[1])
        with closing(Connection(address, 10)) as connection:
            assert ask(connection, b"a question") == b"noitseuq a"
        wire = seen.result(30)
    for secret in (server.address.key, b"a question"):
        assert (secret in wire) == (ways == "plain")


def relayed(relay: socket.socket, address: Address) -> bytes:
    """All that one who connects to `relay` sends to `address`, who answers, until it has gone."""
    asker, _ = relay.accept()
    with asker, socket.create_connection((address.host, address.port)) as server:
        answers = threading.Thread(target=pass_on, args=(server, asker))
        answers.start()
        sent = pass_on(asker, server)
        answers.join()
    return sent


def pass_on(source: socket.socket, target: socket.socket) -> bytes:
    """Everything from one to the other, and what it was."""
    passed = b""
    with suppress(OSError):
        while data := source.recv(2**16):
            target.sendall(data)
            passed += data
    with suppress(OSError):
        target.shutdown(socket.SHUT_WR)
    return passed


def test_who_encrypts_and_who_does_not(
    elsewhere: tuple[Address, subprocess.Popen[str]],
    ways: str,
    monkeypatch: pytest.MonkeyPatch,
    certificates: dict[str, str],
) -> None:
    """One side as the fixture has it, this one the other way."""
    address, _ = elsewhere
    for name, value in certificates.items():
        monkeypatch.setenv(name, value if ways == "plain" else "")
    assert encrypts() == (ways == "plain")
    with pytest.raises(OSError):
        Connection(address, 2)


@pytest.mark.parametrize("ways", ["encrypted"], indirect=True)
def test_a_stranger(
    elsewhere: tuple[Address, subprocess.Popen[str]], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Whose certificate another has signed, though he has the key: neither side talks to the other."""
    address, _ = elsewhere
    with closing(Connection(address, 10)) as connection:
        assert ask(connection, b"ab") == b"abab"
    strange = make_certificates(tmp_path, HOST)
    with monkeypatch.context() as here:
        here.setenv("RAY_TLS_CA_CERT", strange["RAY_TLS_CA_CERT"])
        with pytest.raises(ssl.SSLCertVerificationError):
            Connection(address, 10)
    for name in ("RAY_TLS_SERVER_CERT", "RAY_TLS_SERVER_KEY"):
        monkeypatch.setenv(name, strange[name])
    with pytest.raises(OSError):
        Connection(address, 10)


@pytest.mark.parametrize("ways", ["encrypted"], indirect=True)
def test_a_certificate_for_another_host(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name, value in make_certificates(tmp_path, "127.0.0.2").items():
        monkeypatch.setenv(name, value)
    with pytest.raises(ssl.SSLCertVerificationError, match=r"127\.0\.0\.1"):
        Connection(Server(HOST, answer).address, 10)


@pytest.mark.parametrize("ways", ["encrypted"], indirect=True)
@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, r"^RAY_USE_TLS is set, but RAY_TLS_SERVER_KEY is '.*no\.pem', which is not a file; "),
        ("nothing", r"^The certificates of Ray cannot be used \(.*\); check .*RAY_TLS_SERVER_KEY \(.*no\.pem\)"),
    ],
)
def test_certificates_that_cannot_be_used(
    server: Server, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, content: str | None, message: str
) -> None:
    path = tmp_path / "no.pem"
    if content is not None:
        path.write_text(content, encoding="utf-8")
    monkeypatch.setenv("RAY_TLS_SERVER_KEY", str(path))
    with pytest.raises(InputError, match=message):
        Server(HOST, answer)
    with pytest.raises(InputError, match=message):
        Connection(server.address, 10)
