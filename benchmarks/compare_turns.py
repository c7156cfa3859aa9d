"""The two sides of compare, each in a process of its own that lasts: they take turns, and share nothing.

What a process asks of the system for itself, such as to keep freed memory, would else help the other side, too.
"""

from __future__ import annotations

import multiprocessing
import time
from collections.abc import Sequence
from multiprocessing.connection import Connection
from pathlib import Path
from types import TracebackType
from typing import Any, Literal

from benchmarks.compare_once import Task, opened
from benchmarks.compare_works import WORKS
from ragstone.encoders.precision import Precision

Variant = tuple[str, Precision]
"""A side and what it computes in."""
Turn = Literal["work", "warm up", "settle"]
"""The work itself; the little of it that warms up, or the work where there is no such; what settles a process."""


class SideProcess:
    """One side in its process. Use as a context manager."""

    def __init__(self, folder: Path, side: str) -> None:
        """`folder` holds what Task.save wrote."""
        context = multiprocessing.get_context("spawn")
        self._side = side
        self._connection, there = context.Pipe()
        self._process = context.Process(target=_serve, args=(there, folder, side), daemon=True)
        self._process.start()
        # So that a process that has died is seen to have closed its end.
        there.close()

    def __enter__(self) -> SideProcess:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._connection.close()
        self._process.join()

    def do(self, work: str, precision: Precision, turn: Turn = "work") -> tuple[float, Any]:
        """Seconds of a turn, and what came out.

        Raises:
            RuntimeError: the process has died; it has said why.
        """
        try:
            self._connection.send((work, precision, turn))
            found: tuple[float, Any] = self._connection.recv()
        except (EOFError, ConnectionError) as error:
            raise RuntimeError(f"The process of {self._side} ended at {work} in {precision}.") from error
        return found


def _serve(connection: Connection, folder: Path, side: str) -> None:
    """What the process does, until nobody asks any more."""
    task = Task.load(folder)
    with opened(task, side) as does:
        while True:
            try:
                name, does.precision, turn = connection.recv()
            except EOFError:
                return
            work = WORKS[name]
            action = {"work": work.do, "warm up": work.warms_up or work.do, "settle": work.settles or work.do}[turn]
            if turn == "work" and work.settles is not None:
                # A process that has waited for its turn begins slowly, and a step follows on another.
                action(does, task.inputs)
            began = time.perf_counter()
            result = action(does, task.inputs)
            connection.send((time.perf_counter() - began, result))


def take_turns(
    folder: Path, sides: Sequence[str], work: str, precisions: Sequence[Precision], repeats: int
) -> tuple[dict[Variant, list[float]], dict[Variant, Any]]:
    """Seconds of each run and what the first gave, for each side in each precision; sides and precisions take turns.

    Training moves the weights for the precisions that follow, on both sides alike.
    """
    seconds: dict[Variant, list[float]] = {(side, precision): [] for precision in precisions for side in sides}
    results: dict[Variant, Any] = {}
    reference, ragstone = (SideProcess(folder, side) for side in sides)
    with reference, ragstone:
        processes = dict(zip(sides, (reference, ragstone), strict=True))
        for side, precision in seconds:
            _, result = processes[side].do(work, precision, "warm up")
            if WORKS[work].warms_up is None:
                results[side, precision] = result
        if WORKS[work].settles is not None:
            for side, precision in seconds:
                processes[side].do(work, precision, "settle")
        for _ in range(repeats):
            for (side, precision), taken in seconds.items():
                took, result = processes[side].do(work, precision)
                taken.append(took)
                results.setdefault((side, precision), result)
    return seconds, results
