"""The Ray workers that serve one part of a source: who gets a request, and what becomes of it when a worker dies."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from typing import Any

from ragstone.errors import LostError
from ragstone.retrieval.connection import Address, Server
from ragstone.retrieval.message import Request
from ragstone.retrieval.ray_line import AwayError, Call, GoneError, Line, Promise, lost, server_here

NAMESPACE = "ragstone"
"""Of all actors."""
BOARD = "The board that divides the work among retrieval workers"


class Board:
    """What each worker of a crew has to do."""

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

    def close(self) -> None:
        """Nothing is open."""


class SharedBoard:
    """Becomes a Ray actor where several processes ask the workers: their board."""

    def __init__(self, workers: int) -> None:
        self._board = Board(workers)
        self._server: Server | None = None

    def address(self) -> Address:
        """Where it answers: what BoardLine sends."""
        self._server = self._server or server_here(self._answer)
        return self._server.address

    def _answer(self, message: bytearray) -> bytes:
        """A list of workers is one of those that are usable; a single one has done its request."""
        asked: list[int] | int = json.loads(message)
        if isinstance(asked, list):
            return json.dumps(self._board.take(asked)).encode()
        self._board.release(asked)
        return b"null"


class BoardLine:
    """The shared board, as one of its processes uses it."""

    def __init__(self, actor: Any, timeout: float) -> None:
        """Connect.

        Raises:
            LostError: as from `take`.
        """
        self._line = Line(actor, BOARD, timeout)
        self._timeout = timeout
        with self._gone_is_lost():
            self._line.connect(self._line.promise("address"))

    def take(self, usable: Sequence[int]) -> int:
        """See Board.take.

        Raises:
            LostError: the board is gone, or does not answer.
        """
        return int(self._ask(list(usable)))

    def release(self, number: int) -> None:
        """See Board.release; raises as `take` does."""
        self._ask(number)

    def close(self) -> None:
        """End the connections."""
        self._line.close()

    def _ask(self, what: list[int] | int) -> Any:
        call = Call(json.dumps(what).encode(), time.monotonic())
        self._line.send(call)
        with self._gone_is_lost():
            return json.loads(self._line.answer(call).opened())

    @contextmanager
    def _gone_is_lost(self) -> Iterator[None]:
        try:
            yield
        except GoneError as error:
            raise lost(f"{BOARD} does", self._timeout, "it is gone") from error


class Crew:
    """The workers that serve one part of a source."""

    def __init__(self, names: Sequence[str], board: str | None, timeout: float, serves: str = "") -> None:
        """Find the workers and their board by name, and connect to them.

        Args:
            names: of the workers.
            board: its name; None where nobody else asks the workers.
            timeout: seconds that an answer may take.
            serves: which part of the source they serve, as in " for part 1 of 2"; empty where it is the whole.

        Raises:
            InputError: one cannot answer on its host, see `server_here`.
            LostError: they are not there, do not answer, or cannot be reached.
        """
        import ray

        try:
            actors = [ray.get_actor(name, NAMESPACE) for name in names]
            shared = None if board is None else ray.get_actor(board, NAMESPACE)
        except ValueError as error:
            raise LostError(f"The retrieval workers are not in the Ray cluster any more ({error}).") from error
        count = len(names)
        titles = [f"Retrieval worker {number} of {count}{serves}" for number in range(1, count + 1)]
        titles = titles if count > 1 else [f"The retrieval worker{serves}"]
        self._lines = [Line(actor, title, timeout, ready="info") for actor, title in zip(actors, titles, strict=True)]
        self._gone: dict[int, str] = {}
        self._timeout = timeout
        self._serves = serves
        with ExitStack() as unless_connected:
            unless_connected.callback(self._close_lines)
            for number, asked in self.start_each("address").items():
                with self._noting_who_is_gone(number):
                    self._lines[number].connect(asked)
            self._usable()
            self._board = Board(count) if shared is None else BoardLine(shared, timeout)
            unless_connected.pop_all()

    def start_each(self, method: str) -> dict[int, Promise]:
        """Let Ray call `method` of each worker that is not gone, by the worker's number."""
        return {number: self._lines[number].promise(method) for number in self._usable()}

    def finish_each(self, promises: dict[int, Promise]) -> list[Any]:
        """What `start_each` promised, but for workers that are gone for good.

        Raises:
            InputError: raised by a worker.
            LostError: all workers are gone for good, or one has not answered in time.
        """
        answers = []
        for number, promise in promises.items():
            with self._noting_who_is_gone(number):
                answers.append(self._lines[number].value(promise))
        self._usable()
        return answers

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
        """Wait for the answer to a request; see `call`. Where a worker is gone or away, another is asked."""
        while True:
            with suppress(AwayError), self._noting_who_is_gone(call.worker):
                answer = self._lines[call.worker].answer(call, lambda: self._has_others(call.worker))
                self._release(call.worker)
                return answer.opened()
            self._release(call.worker)
            self._assign(call)

    def close(self) -> None:
        """End the connections."""
        self._close_lines()
        self._board.close()

    @contextmanager
    def _noting_who_is_gone(self, number: int) -> Iterator[None]:
        try:
            yield
        except GoneError as error:
            self._gone[number] = str(error)

    def _close_lines(self) -> None:
        for line in self._lines:
            line.close()

    def _usable(self) -> list[int]:
        """The workers that are not gone for good, of which there must be one."""
        usable = [number for number in range(len(self._lines)) if number not in self._gone]
        if not usable:
            count = len(self._lines)
            serve = self._serves
            workers = f"The retrieval worker{serve} does" if count == 1 else f"The {count} retrieval workers{serve} do"
            raise lost(workers, self._timeout, next(iter(self._gone.values())))
        return usable

    def _reachable(self) -> list[int]:
        return [number for number in self._usable() if self._lines[number].is_there()]

    def _has_others(self, worker: int) -> bool:
        """Whether another one than `worker` can be asked."""
        return any(number != worker for number in self._reachable())

    def _assign(self, call: Call) -> None:
        """Send it to the least busy of the workers that can be reached, or else may come back."""
        call.worker = self._board.take(self._reachable() or self._usable())
        self._lines[call.worker].send(call)

    def _release(self, worker: int) -> None:
        # Of a board that is gone, the next request tells.
        with suppress(LostError):
            self._board.release(worker)


def call_each(crews: Sequence[Crew], requests: Sequence[Request]) -> list[bytearray]:
    """Let a worker of each crew do what its request asks for, all at once; see Crew.call."""
    with ExitStack() as unanswered:
        calls = []
        for crew, request in zip(crews, requests, strict=True):
            calls.append(crew.start(request))
            unanswered.callback(calls[-1].drop)
        return [crew.finish(call) for crew, call in zip(crews, calls, strict=True)]


def let_all(crews: Sequence[Crew], method: str) -> list[Any]:
    """What each worker of each crew gives when Ray calls its `method`, all at once; see Crew.finish_each."""
    promises = [(crew, crew.start_each(method)) for crew in crews]
    return [answer for crew, started in promises for answer in crew.finish_each(started)]
