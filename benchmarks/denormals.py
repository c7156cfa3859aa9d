"""What denormal numbers cost a training step: python -m benchmarks.denormals CHECKPOINT SOURCE QUESTIONS ANSWERS.

CHECKPOINT and SOURCE are a RAG checkpoint and a knowledge source; QUESTIONS and ANSWERS files with one on each line.
Passages are found as ever, but from the second on their scores are lower by so many nats that their posteriors are
about as small. Two processes, of which one takes denormal numbers for zero as `finetune` does, make each step in turn.
"""

from __future__ import annotations

import dataclasses
import statistics
import sys
import time
from collections.abc import Sequence
from contextlib import nullcontext
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
from ragstone.model.finder import Finder, Found
from ragstone.model.open import ModelRequest, open_model
from ragstone.training.optimizer import OptimizerSettings, make_optimizer

GAPS = ((0, 0, 0, 0, 0), (0, 30, 40, 50, 60), (0, 60, 70, 80, 90), (0, 90, 93, 96, 99), (0, 200, 200, 200, 200))
"""Nats by which the scores of a question's passages are lower."""
BATCH = 8
SETTLING = 4
STEPS = 3


class FarApart:
    """Finds what another finder does, with other scores."""

    def __init__(self, inner: Finder) -> None:
        self.inner = inner
        self.asks_encoder = inner.asks_encoder
        self.gaps: Sequence[int] = GAPS[0]

    def find(self, questions: Sequence[str], n_docs: int) -> Found:
        """See Finder.find."""
        found = self.inner.find(questions, n_docs)
        return dataclasses.replace(found, scores=found.scores - torch.tensor(self.gaps))

    def close(self) -> None:
        """See Finder.close."""
        self.inner.close()


def main(arguments: Sequence[str]) -> None:
    """Time both processes and print the table."""
    shown = Table("scores lower by nats", "s a step", "denormals taken for zero", "ratio")
    with (
        OwnProcess("a plain run", _serve, arguments, False) as plain,
        OwnProcess("finetune", _serve, arguments, True) as own,
    ):
        for gaps in GAPS:
            turns = [(plain.ask(gaps), own.ask(gaps)) for _ in range(STEPS)]
            with_them, without = map(statistics.median, zip(*turns, strict=True))
            row = (f"{with_them:.2f}", f"{without:.2f}", f"{with_them / without:.1f}")
            shown.add_row(", ".join(map(str, gaps)), *row)
    console = Console(width=120)
    console.print(shown)
    console.print(
        f"{processor()}, {torch.get_num_threads()} threads, commit {commit()}; {BATCH} questions a step, fp32."
    )


def _serve(connection: Connection, arguments: Sequence[str], flushes: bool) -> None:
    """Answer with the seconds of a step, behind another, over passages whose scores are lower by what is asked for."""
    checkpoint, source, *files = arguments
    questions, answers = (Path(file).read_text(encoding="utf-8").splitlines()[:BATCH] for file in files)
    with flushing_denormals() if flushes else nullcontext(), keeping_freed_memory():
        model: Any = open_model(ModelRequest(checkpoint, passages_path=source, n_docs=len(GAPS[0])))
        finder = model.finder = FarApart(model.finder)
        optimizer = make_optimizer(model, OptimizerSettings())

        def step() -> float:
            began = time.perf_counter()
            model(questions, answers).loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            return time.perf_counter() - began

        for _ in range(SETTLING):
            step()
        for (finder.gaps,) in asked(connection):
            step()
            connection.send(step())


if __name__ == "__main__":
    main(sys.argv[1:])
