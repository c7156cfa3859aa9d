"""The two sides of growth, each in a process of its own that lasts: they take turns, and share nothing."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Literal, Protocol

from benchmarks.compare_sides import SIDES, Setup
from benchmarks.growth_corpus import StandIn, reference_retriever
from benchmarks.own_process import OwnProcess, asked
from benchmarks.synthetic_source import SyntheticSource
from ragstone.index.vector_index import VectorIndex
from ragstone.knowledge.source import KnowledgeSource
from ragstone.retrieval.local import LocalRetriever

Kind = Literal["train", "generate"]
Do = Callable[[], float]
"""Does a work once, and gives the loss, or 0 where there is none."""


class Work(Protocol):
    """What both sides do at a point. It travels to their processes by pickle."""

    def opened(self, side: str) -> Iterator[Do]:
        """Give what does it on a side, then clean up."""
        ...


@dataclass(frozen=True)
class Answering:
    """A training step, or the search for answers."""

    setup: Setup
    kind: Kind
    questions: Sequence[str]
    answers: Sequence[str]
    length: int | None
    """Tokens of an answer, where it is not the setup's."""

    def opened(self, side: str) -> Iterator[Do]:
        """See Work.opened."""
        does = SIDES[side](self.setup)

        def search() -> float:
            does.answers(self.questions, self.length)
            return 0.0

        with does.settings():
            yield search if self.kind == "generate" else lambda: does.step(self.questions, self.answers)


@dataclass(frozen=True)
class Retrieving:
    """From question vectors to passages."""

    source: SyntheticSource
    index: Path
    written: bool
    """Whether the source has a passage for each vector of the index; where not, the reference cannot open it."""
    questions: int
    n_docs: int

    def opened(self, side: str) -> Iterator[Do]:
        """See Work.opened."""
        vectors = self.source.questions()[: self.questions]
        if side == "reference":
            retrieve = reference_retriever(self.source, self.index).retrieve
        elif self.written:
            retrieve = LocalRetriever(KnowledgeSource(self.source.passages_path, self.index)).retrieve
        else:
            retrieve = StandIn(VectorIndex.open(self.index), self.source.passages_path).retrieve

        def do() -> float:
            retrieve(vectors, self.n_docs)
            return 0.0

        yield do


@dataclass(frozen=True)
class Taken:
    """By a side."""

    seconds: float
    """The median."""
    loss: float
    """Of the first run in its process."""


def take_turns(work: Work, sides: Sequence[str], repeats: int) -> dict[str, Taken]:
    """What each of `sides` takes for a work.

    Raises:
        RuntimeError: a side's process has died; it has said why.
    """
    with ExitStack() as stack:
        processes = {side: stack.enter_context(OwnProcess(side, _serve, work, side)) for side in sides}
        runs = [{side: process.ask("work") for side, process in processes.items()} for _ in range(repeats)]
    return {side: Taken(statistics.median(run[side].seconds for run in runs), runs[0][side].loss) for side in sides}


def _serve(connection: Connection, work: Work, side: str) -> None:
    with contextmanager(work.opened)(side) as do:
        for _ in asked(connection):
            # A process that has waited for its turn begins slowly: the first run of each turn does not count.
            loss = do()
            began = time.perf_counter()
            do()
            connection.send(Taken(time.perf_counter() - began, loss))
