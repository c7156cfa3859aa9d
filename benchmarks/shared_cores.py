"""What others on the same cores cost: python -m benchmarks.shared_cores CHECKPOINT SOURCE QUESTIONS ANSWERS.

CHECKPOINT and SOURCE are a RAG checkpoint and a knowledge source; QUESTIONS and ANSWERS files with one on each line.
OpenMP's threads wait for the next computation in a loop, and sleep after some milliseconds; told by
OMP_WAIT_POLICY=PASSIVE, they sleep at once. A process of each kind takes turns with the other: alone on the machine,
and beside another one that only counts.
"""

from __future__ import annotations

import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table

from benchmarks.machine import commit, processor
from benchmarks.own_process import OwnProcess, asked
from ragstone.allocation import keeping_freed_memory
from ragstone.denormals import flushing_denormals
from ragstone.model.decoding import Decoding
from ragstone.model.open import ModelRequest, open_model
from ragstone.training.optimizer import OptimizerSettings, make_optimizer

BATCH = 8
SETTLING = 4
TURNS = 5
WORKS = {"train": "a training step", "search": "beam search, 4 beams"}


def main(arguments: Sequence[str]) -> None:
    """Time all and print the table."""
    shown = Table("work", "beside it", "s as it comes", "s with PASSIVE", "ratio")
    passive = {"OMP_WAIT_POLICY": "PASSIVE"}
    with (
        OwnProcess("threads that spin", _serve, arguments) as spinning,
        OwnProcess("threads that sleep", _serve, arguments, environment=passive) as sleeping,
    ):
        for work, name in WORKS.items():
            for beside, neighbour in (("nothing", nullcontext), ("one that counts", _busy)):
                with neighbour():
                    turns = [(spinning.ask(work), sleeping.ask(work)) for _ in range(TURNS)]
                spun, slept = map(statistics.median, zip(*turns, strict=True))
                shown.add_row(name, beside, f"{spun:.2f}", f"{slept:.2f}", f"{spun / slept:.1f}")
    console = Console(width=120)
    console.print(shown)
    console.print(f"{processor()}, {torch.get_num_threads()} threads, commit {commit()}; {BATCH} questions, fp32.")


def _serve(connection: Connection, arguments: Sequence[str]) -> None:
    """Answer with the seconds of the work that is asked for, behind another of its kind."""
    checkpoint, source, *files = arguments
    questions, answers = (Path(file).read_text(encoding="utf-8").splitlines()[:BATCH] for file in files)
    with keeping_freed_memory(), flushing_denormals():
        model: Any = open_model(ModelRequest(checkpoint, passages_path=source))
        optimizer = make_optimizer(model, OptimizerSettings())

        def train() -> None:
            model(questions, answers).loss.backward()
            optimizer.step()
            optimizer.zero_grad()

        def search() -> None:
            model.generate(questions, Decoding(num_beams=4, max_length=16))

        works: dict[str, Callable[[], None]] = {"train": train, "search": search}
        for _ in range(SETTLING):
            train()
        for (work,) in asked(connection):
            works[work]()
            began = time.perf_counter()
            works[work]()
            connection.send(time.perf_counter() - began)


@contextmanager
def _busy() -> Iterator[None]:
    """A process that takes a core for as long as the with-block lasts."""
    with subprocess.Popen([sys.executable, "-c", "while True: pass"]) as process:
        try:
            yield
        finally:
            process.kill()


if __name__ == "__main__":
    main(sys.argv[1:])
