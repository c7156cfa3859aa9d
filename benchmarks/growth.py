"""What a question costs as its passages, the corpus and the answer grow, in Ragstone and in transformers' Rag classes.

    python -m benchmarks.growth --data_dir DIR --work_dir DIR [--only passages,corpus,target] [--json FILE]

passages and target: a training step (RAG-Sequence) and beam search (RAG-Token) in fp32, on the checkpoint and the
source of benchmarks.compare. corpus: from question vectors to passages, over synthetic sources: an index as the
reference builds it up to a million passages, and a compressed one up to ten million. The vectors of the largest are
made chunk by chunk and not kept, so passages of a smaller source stand in for its own there, and the reference, which
needs them all on the disk, is left out.
"""

from __future__ import annotations

import dataclasses
import datetime
import json
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from benchmarks.checkpoint import SIZES, Workplace
from benchmarks.compare import choose_device
from benchmarks.compare_sides import SIDES, Reference, Setup
from benchmarks.growth_corpus import hnsw_source, ivfpq_index
from benchmarks.growth_turns import Answering, Kind, Retrieving, take_turns
from benchmarks.machine import commit, processor
from benchmarks.synthetic_source import SyntheticSource
from ragstone.data.examples import read_examples, texts_of
from ragstone.errors import InputError
from ragstone.knowledge.source import KnowledgeSource
from ragstone.model.model_type import RagType
from ragstone.output import write_text
from ragstone.settings import parse_settings

PROGRAM = "python -m benchmarks.growth"
AXES = ("passages", "corpus", "target")
ASKED = 32
N_DOCS = 5
DIMENSION = 384
TYPES: dict[Kind, RagType] = {"train": "rag_sequence", "generate": "rag_token"}


@dataclass(frozen=True)
class Settings:
    """Flags of this benchmark."""

    data_dir: Path
    """Holds knowledge.tsv; train, val and test .source and .target."""
    work_dir: Path
    """Where sources and checkpoints are made; those that are there are used again."""
    size: Literal["small", "base", "large"] = "small"
    """Which checkpoint; see benchmarks.compare."""
    device: Literal["cpu", "cuda"] | None = None
    """Where to compute; a GPU, if there is one, where not given."""
    only: str = ",".join(AXES)
    """Which axes."""
    passages: str = "1,5,10,50"
    """Passages per question."""
    corpus: str = "10000,100000,1000000,10000000"
    """Passages of the source."""
    target: str = "5,25,100"
    """Tokens of an answer."""
    largest: int = 1_000_000
    """Passages of the largest source that is written to the disk; larger ones are an index alone."""
    questions: int = 2
    """Questions of a step or a search."""
    repeats: int = 2
    """Timed runs of each point; retrieval, which is short, has ten times as many."""
    checkpoint: Path | None = None
    """A trained RAG checkpoint to take instead, with --passages_path."""
    passages_path: Path | None = None
    """The knowledge source of --checkpoint."""
    json: Path | None = None
    """Write the figures here, as a list of records."""

    def __post_init__(self) -> None:
        other = set(self.only.split(",")) - set(AXES)
        if other:
            raise InputError(f"--only names {min(other)!r}; there are {', '.join(AXES)}.")
        for name in AXES:
            value = getattr(self, name)
            if not all(number.isdecimal() and int(number) > 0 for number in value.split(",")):
                raise InputError(f"--{name} is {value!r}; give whole numbers above 0 with commas between them.")
        for name in ("largest", "questions", "repeats"):
            if getattr(self, name) < 1:
                raise InputError(f"--{name} is {getattr(self, name)}, but must be at least 1.")
        if (self.checkpoint is None) != (self.passages_path is None):
            raise InputError("--checkpoint and --passages_path belong together; give both or neither.")


@dataclass(frozen=True)
class Point:
    """What a question costs somewhere on an axis."""

    axis: str
    at: int
    curve: str
    """What is done: train, generate, or the index that is searched."""
    side: str
    ms: float
    """Per question, the median."""
    date: str
    commit: str
    processor: str


def main(arguments: Sequence[str]) -> int:
    """Run the benchmark as the command line says, and return the exit code."""
    try:
        settings = parse_settings(
            Settings, arguments, PROGRAM, "Time Ragstone and transformers' Rag classes as work grows."
        )
        choose_device(settings.device)
        run(settings)
    except InputError as error:
        print(f"{PROGRAM}: {error}", file=sys.stderr)
        return 2
    return 0


def run(settings: Settings) -> list[Point]:
    """Time every point, print and write the figures."""
    found: dict[str, Callable[[Settings], Iterator[tuple[int, str, str, float]]]] = {
        "passages": _passages,
        "corpus": _corpus,
        "target": _target,
    }
    points: list[Point] = []
    # Before the figures, which may be written into the tree, make it another one.
    where = (str(datetime.date.today()), commit(), processor())
    for axis in settings.only.split(","):
        for at, curve, side, seconds in found[axis](settings):
            points.append(Point(axis, at, curve, side, 1000 * seconds, *where))
            print(f"{axis} {at:,}: {curve}, {side}: {1000 * seconds:.2f} ms per question", flush=True)
            if settings.json is not None:
                write_text(settings.json, json.dumps([dataclasses.asdict(each) for each in points], indent=2) + "\n")
    return points


def _passages(settings: Settings) -> Iterator[tuple[int, str, str, float]]:
    questions, answers = _examples(settings)
    for n_docs in map(int, settings.passages.split(",")):
        for kind in TYPES:
            for side, seconds in _both(settings, kind, questions, answers, n_docs=n_docs):
                yield n_docs, kind, side, seconds


def _target(settings: Settings) -> Iterator[tuple[int, str, str, float]]:
    """Answers are the beginnings of passages."""
    questions, _ = _examples(settings)
    store = KnowledgeSource(_made(settings)[1]).store
    answers = [3 * f"{passage.text} " for passage in store.passages(np.arange(len(questions)))]
    for length in map(int, settings.target.split(",")):
        for kind in TYPES:
            for side, seconds in _both(settings, kind, questions, answers, target_length=length):
                yield length, kind, side, seconds


def _corpus(settings: Settings) -> Iterator[tuple[int, str, str, float]]:
    sizes = sorted(map(int, settings.corpus.split(",")))
    for size in sizes:
        written = size <= settings.largest
        source = SyntheticSource(settings.work_dir / "synthetic", min(size, settings.largest), DIMENSION)
        source.write_passages()
        indexes = {"hnsw": hnsw_source(source)} if written else {}
        indexes["ivfpq"] = ivfpq_index(source, size)
        for curve, index in indexes.items():
            work = Retrieving(source, index, written, ASKED, N_DOCS)
            # Retrieval is short.
            repeats = 10 * settings.repeats
            for side, taken in take_turns(work, list(SIDES) if written else ["ragstone"], repeats).items():
                yield size, curve, side, taken.seconds / ASKED


def _both(
    settings: Settings, kind: Kind, questions: Sequence[str], answers: Sequence[str], **changes: int
) -> Iterator[tuple[str, float]]:
    """Seconds per question of both sides; `changes` is what the setup has of other than defaults.

    Raises:
        InputError: their losses differ.
    """
    checkpoint, folder = _made(settings)
    info = KnowledgeSource(folder).info()
    options: dict[str, Any] = {"n_docs": N_DOCS, **changes}
    setup = Setup(str(checkpoint), info.passages_path, str(info.index_path), "", TYPES[kind], **options)
    asked = Reference(setup).spelled(questions)
    work = Answering(setup, kind, asked, answers, changes.get("target_length"))
    taken = take_turns(work, list(SIDES), settings.repeats)
    losses = [each.loss for each in taken.values()]
    if abs(losses[0] - losses[1]) > 1e-4 * abs(losses[0]):
        raise InputError(f"The loss with {changes} is {losses[0]} in the reference but {losses[1]} in Ragstone.")
    for side, each in taken.items():
        yield side, each.seconds / len(asked)


def _made(settings: Settings) -> tuple[Path, Path]:
    """Checkpoint and knowledge source."""
    if settings.checkpoint is not None and settings.passages_path is not None:
        return settings.checkpoint, settings.passages_path
    size, place = SIZES[settings.size], Workplace(settings.work_dir, settings.data_dir)
    return place.checkpoint(settings.size, size), place.source(size)


def _examples(settings: Settings) -> tuple[list[str], list[str]]:
    return texts_of(read_examples(settings.data_dir, "test", settings.questions))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
