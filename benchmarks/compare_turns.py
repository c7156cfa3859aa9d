"""The two sides of compare, each in a process of its own that lasts: they take turns, and share nothing.

What a process asks of the system for itself, such as to keep freed memory, would else help the other side, too.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from benchmarks.compare_once import Task, opened
from benchmarks.compare_works import WORKS
from benchmarks.own_process import OwnProcess, asked
from ragstone.arithmetic import Precision

Variant = tuple[str, Precision]
"""A side and what it computes in."""


def _serve(connection: Connection, folder: Path, side: str) -> None:
    """What the process of a side does: answers with the seconds of a turn, and what came out.

    A turn is the work itself ("work"); the little of it that warms up, or the work where there is no such ("warm up");
    or what settles a process ("settle").
    """
    task = Task.load(folder)
    with opened(task, side) as does:
        for name, precision, turn in asked(connection):
            does.precision = precision
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

    Training moves the weights for the precisions that follow, on both sides alike. `folder` holds what Task.save wrote.

    Raises:
        RuntimeError: a side's process has died; it has said why.
    """
    seconds: dict[Variant, list[float]] = {(side, precision): [] for precision in precisions for side in sides}
    results: dict[Variant, Any] = {}
    reference, ragstone = (OwnProcess(side, _serve, folder, side) for side in sides)
    with reference, ragstone:
        processes = dict(zip(sides, (reference, ragstone), strict=True))
        for side, precision in seconds:
            _, result = processes[side].ask(work, precision, "warm up")
            if WORKS[work].warms_up is None:
                results[side, precision] = result
        if WORKS[work].settles is not None:
            for side, precision in seconds:
                processes[side].ask(work, precision, "settle")
        for _ in range(repeats):
            for (side, precision), taken in seconds.items():
                took, result = processes[side].ask(work, precision, "work")
                taken.append(took)
                results.setdefault((side, precision), result)
    return seconds, results
