"""What few lengths save in bfloat16: python -m benchmarks.few_lengths CHECKPOINT SOURCE QUESTIONS ANSWERS.

CHECKPOINT and SOURCE are a RAG checkpoint and a knowledge source; QUESTIONS and ANSWERS files with one on each line.
Two processes, of which one pads texts to multiples of LENGTH_STEP as `finetune` does and the other to the longest of
their run, make each step in turn. No batch comes twice, as in an epoch: each has shapes of its own, and oneDNN compiles
a kernel for every shape that it has not met. Then the last batches once more.
"""

from __future__ import annotations

import statistics
import sys
import time
from collections.abc import Sequence
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
from ragstone.encoders import precision
from ragstone.model.open import ModelRequest, open_model
from ragstone.training.optimizer import OptimizerSettings, make_optimizer

BATCH = 8
SETTLING = 30
STEPS = 20


def main(arguments: Sequence[str]) -> None:
    """Time both processes and print the table."""
    shown = Table("batches", "ms a step, padded to the longest", "padded to few lengths", "ratio")
    with (
        OwnProcess("any length", _serve, arguments, 1) as any_length,
        OwnProcess("few lengths", _serve, arguments, precision.LENGTH_STEP) as few,
    ):
        batches = range(SETTLING, SETTLING + STEPS)
        for name in ("never seen before", "the same once more"):
            turns = [(any_length.ask(batch), few.ask(batch)) for batch in batches]
            before, after = (1e3 * statistics.median(taken) for taken in zip(*turns, strict=True))
            shown.add_row(name, f"{before:.0f}", f"{after:.0f}", f"{before / after:.2f}")
    console = Console(width=120)
    console.print(shown)
    console.print(
        f"{processor()}, {torch.get_num_threads()} threads, commit {commit()}; {BATCH} questions a step, bf16, medians "
        f"of {STEPS} steps behind {SETTLING} others."
    )


def _serve(connection: Connection, arguments: Sequence[str], step: int) -> None:
    """Answer with the seconds of a training step over the batch whose number is asked for."""
    precision.LENGTH_STEP = step
    checkpoint, source, *files = arguments
    questions, answers = (Path(file).read_text(encoding="utf-8").splitlines() for file in files)
    with flushing_denormals(), keeping_freed_memory():
        model: Any = open_model(ModelRequest(checkpoint, passages_path=source, n_docs=5))
        optimizer = make_optimizer(model, OptimizerSettings())

        def train(batch: int) -> float:
            rows = slice(batch * BATCH, (batch + 1) * BATCH)
            began = time.perf_counter()
            with torch.autocast("cpu", torch.bfloat16):
                loss = model(questions[rows], answers[rows]).loss
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            return time.perf_counter() - began

        for batch in range(SETTLING):
            train(batch)
        for (batch,) in asked(connection):
            connection.send(train(batch))


if __name__ == "__main__":
    main(sys.argv[1:])
