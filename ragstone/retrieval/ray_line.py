"""The way to a Ray actor that answers over connections: Ray says where it is, and whether it is there at all."""

from __future__ import annotations

import math
import socket
import ssl
import sys
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from ragstone.errors import InputError, LostError
from ragstone.retrieval.connection import Address, Answer, Connection, Payload, Server, listens

PATIENCE = 5.0
"""Seconds without an answer after which Ray is asked whether the actor is still there."""
HUNG = 60.0
"""Seconds without an answer to Ray after which a connected actor hangs; at most a quarter of the time-out."""
PAUSE = 0.1
"""Seconds before an actor is asked again at the address where the connection broke."""
LOOK_EVERY = 1.0
"""Seconds between two looks for an actor that is away, and that each may take."""


class GoneError(Exception):
    """An actor is gone for good; the message is Ray's."""


class AwayError(Exception):
    """An actor cannot be reached for now."""


@dataclass(frozen=True)
class Promise:
    """What a call through Ray will give."""

    reference: Any
    made: float
    began: float
    """From when on the time-out counts."""

    def is_kept(self, seconds: float) -> bool:
        """Wait for it, for at most so long."""
        import ray

        return bool(ray.wait([self.reference], timeout=seconds)[0])


@dataclass
class Away:
    """An actor that could not be reached."""

    ready: Promise
    whereabouts: Promise
    look_at: float
    """When it is looked for next."""
    restarted: bool = False
    """Whether it hung, and Ray was asked to start it anew."""
    reason: str = ""
    """Why it could not be asked when it was found; empty where it was not."""


@dataclass
class Call:
    """A request on its way."""

    request: bytes
    began: float
    worker: int = -1
    """Number of the one that was asked, where there are several."""
    connection: Connection | None = None
    """By which it was asked; None where it could not be yet, and where it has answered."""
    whereabouts: Promise | None = None
    """Where the actor is, if Ray was asked and has not said it yet."""

    def drop(self) -> None:
        """Its connection is of no use any more, or nobody waits for the answer."""
        if self.connection is not None:
            self.connection.close()
            self.connection = None


def server_here(answer: Callable[[bytearray], Payload]) -> Server:
    """A server of the actor that calls this, at the address that Ray has for its host.

    Raises:
        InputError: the host has no such address of its own.
    """
    import ray

    own = ray.get_runtime_context().get_node_id()
    host = next(node["NodeManagerAddress"] for node in ray.nodes() if node["NodeID"] == own)
    try:
        return Server(host, answer)
    except OSError as error:
        raise InputError(
            f"On {socket.gethostname()}, no Ray worker can answer at {host}, the address that Ray has for this host "
            f"({error.strerror or error}); start Ray there with --node-ip-address and one of the host's own addresses."
        ) from error


class Line:
    """To one actor, whose method `address` says where it answers: elsewhere, when it died and Ray started it anew."""

    def __init__(self, actor: Any, name: str, timeout: float, ready: str = "address") -> None:
        """The way to `actor`, called `name` in sentences, which must answer within `timeout` seconds; see `connect`.

        `ready` is the method of it that Ray must have heard an answer of before one that was away is asked again.
        """
        self._actor = actor
        self._name = name
        self._timeout = timeout
        self._ready = ready
        self._address: Address | None = None
        self._idle: list[Connection] = []
        self._away: Away | None = None
        self._looking = threading.Lock()

    def is_there(self) -> bool:
        """Whether it can be asked: where `answer` could not reach it, not before a look, now and then, finds it."""
        with self._looking:
            if self._away is not None and time.monotonic() >= self._away.look_at:
                self._look(self._away)
            return self._away is None

    def promise(self, method: str, began: float | None = None) -> Promise:
        """Let Ray call a method of the actor, in time counted from `began`, else from now."""
        now = time.monotonic()
        return Promise(getattr(self._actor, method).remote(), now, now if began is None else began)

    def value(self, promise: Promise) -> Any:
        """What it gives.

        Raises:
            InputError: raised by the actor.
            GoneError: it is gone for good.
            LostError: it has not answered in time.
        """
        import ray
        from ray.exceptions import GetTimeoutError, RayActorError, RayTaskError

        try:
            return ray.get(promise.reference, timeout=max(0.1, promise.began + self._timeout - time.monotonic()))
        except GetTimeoutError as error:
            raise self._silent() from error
        except RayTaskError as error:
            if isinstance(error.cause, InputError):
                raise InputError(str(error.cause)) from error
            raise
        except RayActorError as error:
            raise GoneError(str(error).strip().splitlines()[0]) from error

    def connect(self, asked: Promise) -> None:
        """Connect for the first time, where `asked`, for the actor's `address`, says that it is.

        Raises:
            LostError: it cannot be reached; this, InputError and GoneError as from `value`, too.
        """
        self._address = self.value(asked)
        try:
            self._idle.append(Connection(self._address, PATIENCE))
        except OSError as error:
            address = self._address
            self._address = self.value(self.promise("address", asked.began))
            # Else it died meanwhile, and is connected to when it is asked.
            if self._address == address:
                raise unreached(self._name, address, error) from error

    def send(self, call: Call) -> None:
        """Send a request, if the actor can be reached where it was last; else `answer` does."""
        call.whereabouts = None
        try:
            call.connection = self._connection(call)
            call.connection.send(call.request, self._left(call))
        except OSError:
            call.drop()

    def answer(self, call: Call, others: Callable[[], bool] = lambda: False) -> Answer:
        """Wait for the answer; where the actor was replaced, the new one is asked. One that hangs is replaced.

        Args:
            call: the request.
            others: says whether another actor can be asked instead.

        Raises:
            AwayError: it cannot be reached now, and there are others. See `is_there`.
            GoneError, LostError: see `value`.
        """
        try:
            while (answer := self._received(call)) is None:
                if call.began + self._timeout < time.monotonic():
                    raise self._silent()
                if call.connection is None and others():
                    self._miss()
                    raise AwayError
                self._follow(call)
        except BaseException:
            call.drop()
            raise
        return answer

    def close(self) -> None:
        """End the connections."""
        with suppress(IndexError):
            while True:
                self._idle.pop().close()

    def _received(self, call: Call) -> Answer | None:
        """What came back; None where nothing did for a while, or the connection broke."""
        connection = call.connection
        try:
            if connection is None or not connection.answers_within(min(PATIENCE, self._left(call))):
                return None
            answer = connection.receive(self._left(call))
        except OSError:
            call.drop()
            return None
        self._idle.append(connection)
        call.connection = None
        return answer

    def _follow(self, call: Call) -> None:
        """Let Ray say where the actor is, and ask it again if it is not where it was asked; replace one that hangs."""
        asked = call.whereabouts = call.whereabouts or self.promise("address", call.began)
        if not asked.is_kept(min(PATIENCE, self._left(call))):
            # Whoever has died, or is only starting, has no connection.
            if call.connection is not None and time.monotonic() - asked.made >= self._patience:
                self._restart()
                call.drop()
            return
        call.whereabouts = None
        address = self.value(asked)
        if call.connection is not None and call.connection.address == address:
            return
        call.drop()
        if address == self._address:
            time.sleep(PAUSE)
        else:
            self._address = address
            self.close()
        self.send(call)

    @property
    def _patience(self) -> float:
        return min(HUNG, self._timeout / 4)

    def _restart(self) -> None:
        # In one piece: another thread may say the same.
        sys.stderr.write(f"{self._name} has not answered Ray for {self._patience:g} s; it is started anew.\n")
        # Where the cluster's head cannot be reached, killing waits for it, maybe beyond the time-out.
        threading.Thread(target=_restart, args=(self._actor,), name="restart", daemon=True).start()

    def _miss(self) -> None:
        """It cannot be reached."""
        with self._looking:
            if self._away is None:
                self._away = self._absence()
                sys.stderr.write(f"{self._name} cannot be reached; others are asked until it is back.\n")

    def _absence(self, reason: str = "") -> Away:
        look_at = time.monotonic() + LOOK_EVERY
        return Away(self.promise(self._ready), self.promise("address"), look_at, reason=reason)

    def _look(self, away: Away) -> None:
        """Take it for reachable again, if it is. One that hangs is replaced here, too."""
        away.look_at = time.monotonic() + LOOK_EVERY
        if not (away.ready.is_kept(0) and away.whereabouts.is_kept(0)):
            silent = time.monotonic() - away.ready.made >= self._patience
            if silent and not away.restarted and self._address is not None and listens(self._address, LOOK_EVERY):
                away.restarted = True
                self._restart()
            return
        try:
            self.value(away.ready)
            address = self.value(away.whereabouts)
            connection = Connection(address, LOOK_EVERY)
        except GoneError as error:
            away.look_at = math.inf
            sys.stderr.write(f"{self._name} is gone for good ({error}).\n")
        except (InputError, OSError) as error:
            # As from a host that has not the source, or that lets nobody through.
            if str(error) != away.reason:
                sys.stderr.write(f"{self._name} was found, but cannot be asked: {error}\n")
            self._away = self._absence(str(error))
        else:
            self.close()
            self._address = address
            self._idle.append(connection)
            self._away = None
            sys.stderr.write(f"{self._name} is back.\n")

    def _connection(self, call: Call) -> Connection:
        # Several threads may ask at the same time, each over a connection of its own.
        with suppress(IndexError):
            return self._idle.pop()
        assert self._address is not None
        return Connection(self._address, min(PATIENCE, self._left(call)))

    def _left(self, call: Call) -> float:
        """Seconds in which it must be answered."""
        return max(0.1, call.began + self._timeout - time.monotonic())

    def _silent(self) -> LostError:
        return lost(f"{self._name} does", self._timeout, "it is stopped, or its host cannot be reached")


def _restart(actor: Any) -> None:
    """Ray asks the new one what it asked the old one."""
    import ray

    # That nobody is there to kill it, whoever waits for an answer will find out.
    with suppress(Exception):
        ray.kill(actor, no_restart=False)


def unreached(name: str, address: Address, error: OSError) -> LostError:
    """The error that an actor called `name` cannot be connected to."""
    reason = error.strerror or (f"nothing within {PATIENCE:g} s" if isinstance(error, TimeoutError) else str(error))
    remedy = "workers answer at ports of their own, which every host of the run must be let through to"
    if isinstance(error, ssl.SSLError):
        remedy = "the certificates that Ray has on each host must be for that host's address"
    return LostError(f"{name} cannot be reached at {address} ({reason}); {remedy}.")


def lost(who: str, timeout: float, reason: str) -> LostError:
    """The error that `who` (with its verb, "does") does not answer."""
    return LostError(
        f"{who} not answer any more (time-out {timeout:g} s): {reason}; see `ray status`, and resume the run with "
        "--resume."
    )
