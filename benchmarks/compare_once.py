"""One side of compare does one work once, in a process of its own, and says what came out, in a line of JSON.

A work that settles does so first.

    python -m benchmarks.compare_once FOLDER SIDE WORK PRECISION

FOLDER holds what Task.save wrote.
"""

from __future__ import annotations

import dataclasses
import json
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from benchmarks.compare_sides import SIDES, Setup, Side
from benchmarks.compare_works import WORKS, Inputs
from ragstone.arithmetic import Precision


@dataclass(frozen=True)
class Task:
    """What is to be done, as another process can read it."""

    setup: Setup
    inputs: Inputs

    def save(self, folder: Path) -> None:
        """Write it into `folder`; load reads it."""
        plain = dataclasses.asdict(self)
        np.save(folder / "vectors.npy", plain["inputs"].pop("vectors"))
        (folder / "task.json").write_text(json.dumps(plain, default=str), encoding="utf-8")

    @classmethod
    def load(cls, folder: Path) -> Task:
        """Read what save wrote."""
        plain = json.loads((folder / "task.json").read_text(encoding="utf-8"))
        inputs = plain["inputs"]
        inputs |= {name: Path(inputs[name]) for name in ("documents", "asked", "expected")}
        return cls(Setup(**plain["setup"]), Inputs(**inputs, vectors=np.load(folder / "vectors.npy")))


@contextmanager
def opened(task: Task, side: str) -> Iterator[Side]:
    """A side that can work within the with-block, as it sets its process up for that."""
    does = SIDES[side](task.setup)
    with does.settings():
        yield does


def main(arguments: Sequence[str]) -> None:
    """Do the work, and print seconds and result; a result that is no text or number is left out."""
    folder, side, work, precision = arguments
    task = Task.load(Path(folder))
    with opened(task, side) as does:
        does.precision = _precision(precision)
        if (settle := WORKS[work].settles) is not None:
            settle(does, task.inputs)
        began = time.perf_counter()
        result = WORKS[work].do(does, task.inputs)
        seconds = time.perf_counter() - began
    plain = result if isinstance(result, (list, float)) else None
    print(json.dumps({"seconds": seconds, "result": plain}), flush=True)


def _precision(name: str) -> Precision:
    return "bf16" if name == "bf16" else "fp32"


if __name__ == "__main__":
    main(sys.argv[1:])
