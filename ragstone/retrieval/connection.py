"""Requests and their answers as bytes, between a process that asks and a Ray worker that answers.

Ray starts the workers, watches them and replaces them. A call through it takes some milliseconds more where cores are
few (benchmarks/results/retrieval.md). A frame is its kind, its length and its bytes. Whoever connects begins with the
key that comes with the address, and is told that it fits. Where Ray encrypts its connections, these are encrypted too.
"""

from __future__ import annotations

import hmac
import secrets
import select
import socket
import struct
import threading
import time
import traceback
from collections.abc import Callable
from contextlib import ExitStack, suppress
from dataclasses import dataclass

from ragstone.errors import InputError
from ragstone.retrieval.tls import tls_context

Payload = bytes | bytearray | memoryview
HEADER = struct.Struct("<BQ")
ASKED, ANSWERED, REFUSED, FAILED = range(4)
"""Kinds of frames: a request; what it gave; the sentence of an InputError; the traceback of anything else."""
KEY_BYTES = 32
WELCOME = b"\n"
"""What comes back for the key."""
SECONDS_TO_KNOCK = 10.0
"""In which whoever connects must have sent the key."""
SILENCE = 15
"""Seconds after which a host that confirms nothing, not even that it is there, is taken for gone."""
WATCHED = {
    "TCP_NODELAY": 1,
    "TCP_KEEPIDLE": SILENCE // 3,
    "TCP_KEEPINTVL": SILENCE // 3,
    "TCP_KEEPCNT": 2,
    "TCP_USER_TIMEOUT": 1000 * SILENCE,
}
"""Options of the sockets at both ends, as far as the system has them: nothing waits to be sent, or for a lost host."""


@dataclass(frozen=True)
class Address:
    """Where a worker answers."""

    host: str
    port: int
    key: bytes

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


@dataclass(frozen=True)
class Answer:
    """What came back."""

    kind: int
    payload: bytearray

    def opened(self) -> bytearray:
        """What the request gave.

        Raises:
            InputError: raised by the worker.
            RuntimeError: the worker failed.
        """
        if self.kind == ANSWERED:
            return self.payload
        told = self.payload.decode()
        raise InputError(told) if self.kind == REFUSED else RuntimeError(f"A retrieval worker failed:\n{told}")


def listens(address: Address, seconds: float) -> bool:
    """Whether a process listens there, which may hang all the same: the system takes connections for it."""
    with suppress(OSError), socket.create_connection((address.host, address.port), seconds):
        return True
    return False


class Connection:
    """A way to a worker, for one request at a time."""

    def __init__(self, address: Address, timeout: float) -> None:
        """Connect within `timeout` seconds.

        Raises:
            OSError: it cannot be reached, or does not accept the key, or one side not the other's certificate.
            InputError: this host's certificates cannot be used.
        """
        self.address = address
        secure, deadline = tls_context(server_side=False), time.monotonic() + timeout
        with ExitStack() as opened:
            connected = opened.enter_context(socket.create_connection((address.host, address.port), timeout))
            _watch(connected)
            if secure is not None:
                connected.settimeout(_left(deadline))
                connected = opened.enter_context(secure.wrap_socket(connected, server_hostname=address.host))
            connected.settimeout(_left(deadline))
            connected.sendall(address.key)
            _read(connected, len(WELCOME), deadline)
            self._socket = connected
            opened.pop_all()

    def send(self, request: Payload, timeout: float) -> None:
        """Send a request within `timeout` seconds.

        Raises:
            OSError: the worker is gone, or has not taken all of it.
        """
        self._socket.settimeout(timeout)
        _send(self._socket, ASKED, request)

    def answers_within(self, seconds: float) -> bool:
        """Wait until there is an answer, or the worker has gone, for at most so long."""
        poll = select.poll()
        poll.register(self._socket, select.POLLIN)
        return bool(poll.poll(1000 * seconds))

    def receive(self, timeout: float) -> Answer:
        """The answer to the request, which must be there within `timeout` seconds.

        Raises:
            OSError: the worker has gone, or has not sent all of it.
        """
        return Answer(*_receive(self._socket, time.monotonic() + timeout))

    def close(self) -> None:
        """End it."""
        self._socket.close()


class Server:
    """Answers the requests of all who connect, one at a time."""

    def __init__(self, host: str, answer: Callable[[bytearray], Payload]) -> None:
        """Listen at the address `host` of this machine; `answer` gets the bytes of a request, one at a time.

        Raises:
            OSError: the address is none of this machine.
            InputError: this host's certificates cannot be used.
        """
        self._secure = tls_context(server_side=True)
        self._answer = answer
        self._lock = threading.Lock()
        self._listener = socket.create_server((host, 0), family=_family(host), backlog=128)
        self.address = Address(host, self._listener.getsockname()[1], secrets.token_bytes(KEY_BYTES))
        threading.Thread(target=self._accept, name="retrieval-listener", daemon=True).start()

    def _accept(self) -> None:
        while True:
            with suppress(OSError):
                # Where nobody came after all, or there are too many files or threads for now, there is a next time.
                connected, _ = self._listener.accept()
                try:
                    threading.Thread(target=self._serve, args=(connected,), name="retrieval", daemon=True).start()
                    continue
                except RuntimeError:
                    connected.close()
            time.sleep(0.1)

    def _serve(self, connected: socket.socket) -> None:
        """Answer until the other side has gone."""
        with connected, suppress(OSError):
            _watch(connected)
            deadline = time.monotonic() + SECONDS_TO_KNOCK
            connected.settimeout(SECONDS_TO_KNOCK)
            with self._secure.wrap_socket(connected, server_side=True) if self._secure else connected as way:
                key = _read(way, KEY_BYTES, deadline)
                if not hmac.compare_digest(key, self.address.key):
                    return
                way.settimeout(None)
                way.sendall(WELCOME)
                while True:
                    _, request = _receive(way)
                    _send(way, *self._answered(request))

    def _answered(self, request: bytearray) -> tuple[int, Payload]:
        """Kind and bytes of the answer."""
        try:
            with self._lock:
                return ANSWERED, self._answer(request)
        except InputError as error:
            return REFUSED, str(error).encode(errors="backslashreplace")
        except Exception:
            return FAILED, traceback.format_exc().encode(errors="backslashreplace")


def _family(host: str) -> socket.AddressFamily:
    return socket.AF_INET6 if ":" in host else socket.AF_INET


def _send(to: socket.socket, kind: int, payload: Payload) -> None:
    to.sendall(b"".join((HEADER.pack(kind, len(payload)), payload)))


def _receive(source: socket.socket, deadline: float | None = None) -> tuple[int, bytearray]:
    kind, size = HEADER.unpack(_read(source, HEADER.size, deadline))
    return kind, _read(source, size, deadline)


def _read(source: socket.socket, size: int, deadline: float | None) -> bytearray:
    """`size` bytes, however long it takes, or until the time `deadline`."""
    data = bytearray(size)
    rest = memoryview(data)
    while rest:
        if deadline is not None:
            source.settimeout(_left(deadline))
        count = source.recv_into(rest)
        if count == 0:
            raise ConnectionResetError("the other side has closed the connection")
        rest = rest[count:]
    return data


def _left(deadline: float) -> float:
    """Seconds until then, and never none: that would mean not to wait at all."""
    return max(1e-3, deadline - time.monotonic())


def _watch(connected: socket.socket) -> None:
    connected.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for name, value in WATCHED.items():
        if hasattr(socket, name):
            connected.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)
