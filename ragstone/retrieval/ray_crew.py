"""The Ray workers that serve one part of a source: who gets a request, and what becomes of it when a worker dies."""

from __future__ import annotations

import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from ragstone.errors import InputError, LostError

NAMESPACE = "ragstone"
"""Of all actors."""


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

    method: str
    arguments: tuple[Any, ...]
    began: float
    worker: int = -1
    answer: Any = None


class Crew:
    """The workers that serve one part of a source."""

    def __init__(self, names: Sequence[str], board: str | None, timeout: float) -> None:
        """Find the workers and their board (None: nobody else asks the workers) by name.

        Raises:
            LostError: they are not there.
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

    def call(self, method: str, *arguments: Any) -> Any:
        """Let a worker do `method`, and wait for the answer.

        Raises:
            InputError: raised by the worker.
            LostError: all workers are gone for good, or the one that was asked has not answered in time.
        """
        return self.finish(self.start(method, *arguments))

    def start(self, method: str, *arguments: Any) -> Call:
        """Send a request to the least busy worker."""
        call = Call(method, arguments, time.monotonic())
        self._send(call, self._usable())
        return call

    def start_each(self, method: str) -> list[Call]:
        """Send a request to each worker that is not gone."""
        calls = []
        for number in self._usable():
            calls.append(Call(method, (), time.monotonic()))
            self._send(calls[-1], [number])
        return calls

    def finish(self, call: Call) -> Any:
        """Wait for the answer to a request; see `call`."""
        import ray
        from ray.exceptions import GetTimeoutError, RayActorError, RayTaskError

        while True:
            try:
                answer = ray.get(call.answer, timeout=max(0.1, call.began + self._timeout - time.monotonic()))
            except GetTimeoutError as error:
                count = len(self._workers)
                worker = "The retrieval worker" if count == 1 else f"Retrieval worker {call.worker + 1} of {count}"
                raise self._lost(f"{worker} does", "it is stopped, or its host cannot be reached") from error
            except RayTaskError as error:
                self._release(call)
                if isinstance(error.cause, InputError):
                    raise InputError(str(error.cause)) from error
                raise
            except RayActorError as error:
                self._gone[call.worker] = str(error).strip().splitlines()[0]
                self._send(call, self._usable())
            else:
                self._release(call)
                return answer

    def _usable(self) -> list[int]:
        """The workers that are not gone for good, of which there must be one."""
        usable = [number for number in range(len(self._workers)) if number not in self._gone]
        if not usable:
            count = len(self._workers)
            workers = "The retrieval worker does" if count == 1 else f"The {count} retrieval workers do"
            raise self._lost(workers, next(iter(self._gone.values())))
        return usable

    def _send(self, call: Call, usable: list[int]) -> None:
        """Send it to the least busy of the workers `usable`."""
        call.worker = self._take(usable)
        call.answer = getattr(self._workers[call.worker], call.method).remote(*call.arguments)

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

    def _lost(self, who: str, reason: str) -> LostError:
        return LostError(
            f"{who} not answer any more (time-out {self._timeout:g} s): {reason}; see `ray status`, and resume the run "
            "with --resume."
        )


def call_all(crews: Sequence[Crew], method: str) -> list[Any]:
    """What each worker of each crew answers to `method`, all asked at once; see Crew.call."""
    calls = [(crew, call) for crew in crews for call in crew.start_each(method)]
    return [crew.finish(call) for crew, call in calls]
