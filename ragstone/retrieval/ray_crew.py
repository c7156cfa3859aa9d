"""The Ray workers that serve one part of a source: who gets a request, and what becomes of it when a worker dies."""

from __future__ import annotations

import threading
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from ragstone.errors import InputError, LostError
from ragstone.retrieval.connection import Address, Answer, Connection
from ragstone.retrieval.message import Request

NAMESPACE = "ragstone"
"""Of all actors."""
PATIENCE = 5.0
"""Seconds without an answer after which Ray is asked whether the worker is still there."""
ABRUPT = 0.1
"""Seconds before a worker that let nobody connect is tried again."""


class Board:
    """What each worker of a crew has to do. Becomes a Ray actor where several processes ask them."""

    def __init__(self, workers: int) -> None:
        self._requests = [0] * workers
        self._taken = [0] * workers
        self._lock = threading.Lock()

    def take(self, usable: Sequence[int]) -> int:
        """The worker among `usable` that has least to do, of equals the one that has done least; counts it."""
        with self._lock:
            number = min(usable, key=lambda worker: (self._requests[worker], self._taken[worker]))
            self._requests[number] += 1
            self._taken[number] += 1
        return number

    def release(self, number: int) -> None:
        """A request of the worker is done."""
        with self._lock:
            # A board that was started anew does not know the requests of before.
            self._requests[number] = max(0, self._requests[number] - 1)


@dataclass
class Call:
    """A request on its way."""

    request: bytes
    began: float
    worker: int = -1
    connection: Connection | None = None
    """By which the worker was asked; None where it could not be yet."""


class Crew:
    """The workers that serve one part of a source.

    Requests go over connections; Ray is asked where a worker is, at first and whenever it is silent.
    """

    def __init__(self, names: Sequence[str], board: str | None, timeout: float) -> None:
        """Find the workers and their board (None: nobody else asks the workers) by name, and connect to them.

        Raises:
            LostError: they are not there, do not answer, or cannot be reached.
        """
        import ray

        try:
            self._workers: list[Any] = [ray.get_actor(name, NAMESPACE) for name in names]
            self._shared_board: Any = None if board is None else ray.get_actor(board, NAMESPACE)
        except ValueError as error:
            raise LostError(f"The retrieval workers are not in the Ray cluster any more ({error}).") from error
        self._own_board = Board(len(names))
        self._gone: dict[int, str] = {}
        self._timeout = timeout
        self._addresses: dict[int, Address] = self.finish_each(self.start_each("address"))
        self._idle: dict[int, list[Connection]] = {number: [] for number in self._addresses}
        try:
            for number, connections in self._idle.items():
                connections.append(self._first_connection(number))
        except LostError:
            self.close()
            raise

    def start_each(self, method: str) -> dict[int, Any]:
        """Let Ray call `method` of each worker that is not gone: references to the answers, by the worker's number."""
        return {number: getattr(self._workers[number], method).remote() for number in self._usable()}

    def finish_each(self, references: dict[int, Any]) -> dict[int, Any]:
        """Wait for the answers of `start_each`; of workers that are gone for good there is none.

        Raises:
            InputError: raised by a worker.
            LostError: all workers are gone for good, or one has not answered in time.
        """
        began = time.monotonic()
        answers = {number: self._from_ray(number, reference, began) for number, reference in references.items()}
        self._usable()
        return {number: answer for number, answer in answers.items() if answer is not None}

    def call(self, request: Request) -> bytearray:
        """Let a worker do what is asked, and wait for its answer.

        Raises:
            InputError: raised by the worker.
            LostError: all workers are gone for good, or the one that was asked has not answered in time.
        """
        return self.finish(self.start(request))

    def start(self, request: Request) -> Call:
        """Send a request to the least busy worker."""
        call = Call(request.encode(), time.monotonic())
        self._assign(call)
        return call

    def finish(self, call: Call) -> bytearray:
        """Wait for the answer to a request; see `call`. A worker that was replaced is asked again."""
        try:
            while (answer := self._answer(call)) is None:
                self._follow(call)
        except BaseException:
            _drop(call)
            raise
        self._release(call)
        return answer.opened()

    def close(self) -> None:
        """End the connections."""
        for number in self._idle:
            self._close_idle(number)

    def _usable(self) -> list[int]:
        """The workers that are not gone for good, of which there must be one."""
        usable = [number for number in range(len(self._workers)) if number not in self._gone]
        if not usable:
            count = len(self._workers)
            workers = "The retrieval worker does" if count == 1 else f"The {count} retrieval workers do"
            raise self._lost(workers, next(iter(self._gone.values())))
        return usable

    def _assign(self, call: Call) -> None:
        """Send it to the least busy of the workers that are not gone."""
        call.worker = self._take(self._usable())
        self._send(call)

    def _send(self, call: Call) -> None:
        """Send it to its worker, if that can be reached where it was last."""
        try:
            call.connection = self._connection(call)
            call.connection.send(call.request, self._left(call))
        except OSError:
            _drop(call)

    def _connection(self, call: Call) -> Connection:
        # Several threads may ask the same worker, each over a connection of its own.
        with suppress(IndexError):
            return self._idle[call.worker].pop()
        return Connection(self._addresses[call.worker], self._left(call))

    def _answer(self, call: Call) -> Answer | None:
        """What came back; None where nothing did for a while, or the connection broke."""
        connection = call.connection
        try:
            if connection is None or not connection.answers_within(min(PATIENCE, self._left(call))):
                return None
            answer = connection.receive(self._left(call))
        except OSError:
            _drop(call)
            return None
        self._idle[call.worker].append(connection)
        return answer

    def _close_idle(self, number: int) -> None:
        with suppress(IndexError):
            while True:
                self._idle[number].pop().close()

    def _first_connection(self, number: int) -> Connection:
        address = self._addresses[number]
        try:
            return Connection(address, self._timeout)
        except OSError as error:
            raise LostError(
                f"{self._name(number)} cannot be reached at {address} ({error.strerror or error}); workers answer at "
                "ports of their own, which every host of the run must be let through to."
            ) from error

    def _follow(self, call: Call) -> None:
        """Find out where the worker is that has not answered, and ask it again where it was replaced."""
        if call.began + self._timeout < time.monotonic():
            raise self._silent(call.worker)
        address = self._from_ray(call.worker, self._workers[call.worker].address.remote(), call.began)
        if address is None:
            _drop(call)
            self._assign(call)
        elif call.connection is None or call.connection.address != address:
            _drop(call)
            if address != self._addresses[call.worker]:
                self._addresses[call.worker] = address
                self._close_idle(call.worker)
            self._send(call)
            if call.connection is None:
                time.sleep(ABRUPT)

    def _from_ray(self, number: int, reference: Any, began: float) -> Any:
        """What Ray's call of a worker gave; None where the worker is gone for good.

        Raises:
            InputError: raised by the worker.
            LostError: it has not answered in time.
        """
        import ray
        from ray.exceptions import GetTimeoutError, RayActorError, RayTaskError

        try:
            return ray.get(reference, timeout=max(0.1, began + self._timeout - time.monotonic()))
        except GetTimeoutError as error:
            raise self._silent(number) from error
        except RayTaskError as error:
            if isinstance(error.cause, InputError):
                raise InputError(str(error.cause)) from error
            raise
        except RayActorError as error:
            self._gone[number] = str(error).strip().splitlines()[0]
            return None

    def _left(self, call: Call) -> float:
        """Seconds in which it must be answered."""
        return max(0.1, call.began + self._timeout - time.monotonic())

    def _take(self, usable: list[int]) -> int:
        if self._shared_board is None:
            return self._own_board.take(usable)
        import ray
        from ray.exceptions import GetTimeoutError, RayActorError

        try:
            return int(ray.get(self._shared_board.take.remote(usable), timeout=self._timeout))
        except (GetTimeoutError, RayActorError) as error:
            raise self._lost("The board that divides the work among retrieval workers does", "it is gone") from error

    def _release(self, call: Call) -> None:
        if self._shared_board is None:
            self._own_board.release(call.worker)
        else:
            # Nobody waits for this, and it is not repeated: a board that was replaced has forgotten the request.
            self._shared_board.release.options(max_task_retries=0).remote(call.worker)

    def _name(self, number: int) -> str:
        count = len(self._workers)
        return "The retrieval worker" if count == 1 else f"Retrieval worker {number + 1} of {count}"

    def _silent(self, number: int) -> LostError:
        return self._lost(f"{self._name(number)} does", "it is stopped, or its host cannot be reached")

    def _lost(self, who: str, reason: str) -> LostError:
        return LostError(
            f"{who} not answer any more (time-out {self._timeout:g} s): {reason}; see `ray status`, and resume the run "
            "with --resume."
        )


def call_all(crews: Sequence[Crew], method: str) -> list[Any]:
    """What each worker of each crew answers when Ray calls its `method`, all at once; see Crew.finish_each."""
    references = [(crew, crew.start_each(method)) for crew in crews]
    return [answer for crew, started in references for answer in crew.finish_each(started).values()]


def _drop(call: Call) -> None:
    """Its connection is of no use any more."""
    if call.connection is not None:
        call.connection.close()
        call.connection = None
