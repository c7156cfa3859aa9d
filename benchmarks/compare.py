"""Ragstone side by side with transformers' Rag classes: the same checkpoint, source and questions, in turn in one run.

    python -m benchmarks.compare --checkpoint RAG_CHECKPOINT --data_dir DIR [--only NAME,...] [--best_precision]
        [--json FILE] [--results benchmarks/results/compare.md]

The checkpoint should be a trained one, so that answers have real lengths and passages propose the same answers:
scripts/openqa.sh leaves one in OUT_DIR/rag_run/best, `make demo` one in demo/run/best. Peak memory is that of a fresh
process that does the work once.
"""

from __future__ import annotations

import dataclasses
import datetime
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console
from rich.table import Table

from benchmarks.compare_sides import SIDES, Ragstone, Reference, Setup, Side, source_of
from benchmarks.machine import command, commit, processor
from ragstone.data.examples import read_examples, texts_of
from ragstone.encoders.precision import Precision, best_device, fast_bfloat16
from ragstone.errors import InputError
from ragstone.knowledge.source import KnowledgeSource
from ragstone.model.rag import RagType
from ragstone.output import write_text
from ragstone.settings import parse_settings

PROGRAM = "python -m benchmarks.compare"
PASSAGES_EMBEDDED = 512
EVALUATED = 200


@dataclass(frozen=True)
class Inputs:
    """What the works are done with."""

    questions: list[str]
    answers: list[str]
    vectors: np.ndarray
    """[B, D] vectors that stand for questions: those of passages."""
    titles: list[str]
    texts: list[str]


@dataclass(frozen=True)
class Work:
    """Something that both sides do."""

    what: str
    do: Callable[[Side, Inputs], Any]
    equal: Callable[[Any, Any, bool], str | None]
    """How far two results agree, in words; None where they do not agree. True: both are computed in fp32."""
    model_type: RagType = "rag_sequence"
    repeats: int = 3


def _same_number(theirs: float, ours: float, exact: bool) -> str | None:
    off = abs(theirs - ours) / abs(theirs)
    return f"losses {theirs:.5f} and {ours:.5f}" if off < (1e-5 if exact else 2e-2) else None


def _same_answers(theirs: Sequence[str], ours: Sequence[str], exact: bool) -> str | None:
    """In fp32 all but those whose scores are too close for rounding, one in thirty at most."""
    alike = sum(a == b for a, b in zip(theirs, ours, strict=True))
    return f"{alike} of {len(ours)} answers alike" if alike >= (29 / 30 if exact else 0.8) * len(ours) else None


def _same_passages(theirs: Any, ours: Any, exact: bool) -> str | None:
    return f"all {ours.numel()} passages alike" if torch.equal(theirs, ours) else None


def _same_vectors(theirs: np.ndarray, ours: np.ndarray, exact: bool) -> str | None:
    off = np.abs(theirs - ours).max() / np.abs(theirs).max()
    return f"vectors equal to {off:.0e}" if off < (1e-5 if exact else 2e-2) else None


def _answer_in_batches(side: Side, inputs: Inputs) -> list[str]:
    """Batches of 8, the reference's default; Ragstone's is 32."""
    size = 8 if isinstance(side, Reference) else 32
    questions = inputs.questions[:EVALUATED]
    return [text for i in range(0, len(questions), size) for text in side.answers(questions[i : i + size])]


def _step(side: Side, inputs: Inputs) -> float:
    return side.step(inputs.questions[:8], inputs.answers[:8])


def _answer(side: Side, inputs: Inputs) -> list[str]:
    return side.answers(inputs.questions[:32])


WORKS = {
    "train_sequence": Work("a fine-tuning step, 8 questions", _step, _same_number),
    "train_token": Work("a fine-tuning step, 8 questions", _step, _same_number, "rag_token"),
    "generate_sequence": Work("thorough decoding, 4 beams, 32 questions", _answer, _same_answers, repeats=1),
    "generate_token": Work("beam search, 4 beams, 32 questions", _answer, _same_answers, "rag_token", repeats=2),
    "retrieve": Work(
        "32 question vectors to tokenised contexts",
        lambda side, inputs: side.contexts(inputs.questions[:32], inputs.vectors[:32]),
        _same_passages,
        repeats=15,
    ),
    "build_knowledge": Work(
        f"{PASSAGES_EMBEDDED} passages to vectors",
        lambda side, inputs: side.embed(inputs.titles, inputs.texts),
        _same_vectors,
    ),
    "evaluate": Work(f"{EVALUATED} questions answered, 4 beams", _answer_in_batches, _same_answers, repeats=1),
}


@dataclass(frozen=True)
class Settings:
    """Flags of this benchmark."""

    checkpoint: Path
    """A trained RAG checkpoint."""
    data_dir: Path
    """Holds test.source and test.target."""
    passages_path: Path | None = None
    """The knowledge source, where the checkpoint records none."""
    only: str = ",".join(WORKS)
    """Which works."""
    n_docs: int = 5
    """Passages per question."""
    best_precision: bool = False
    """Each side in its best precision (Ragstone: bf16 where it is fast; the reference: fp32 on a CPU, as its flags
    allow no other, and fp16 on a GPU); else both in fp32."""
    side: str | None = None
    """Let one side (reference, ragstone) do the one work of --only once, and print the peak of memory in MiB."""
    json: Path | None = None
    """Write the figures here, as a list of records."""
    results: Path | None = None
    """Write them here, as a page in Markdown."""

    def __post_init__(self) -> None:
        other = set(self.only.split(",")) - set(WORKS)
        if other:
            raise InputError(f"--only names {min(other)!r}; there are {', '.join(WORKS)}.")
        if self.side is not None and (self.side not in SIDES or self.only not in WORKS):
            raise InputError("--side is reference or ragstone, beside one work in --only.")


@dataclass(frozen=True)
class Record:
    """One work on both sides."""

    name: str
    work: str
    reference_s: float
    ragstone_s: float
    ratio: float
    reference_mib: float
    ragstone_mib: float
    agreement: str
    precision: str


def main(arguments: Sequence[str]) -> int:
    """Run the benchmark as the command line says, and return the exit code."""
    try:
        settings = parse_settings(Settings, arguments, PROGRAM, "Time Ragstone beside transformers' Rag classes.")
        if settings.side is not None:
            print(_peak(settings))
            return 0
        run(settings)
    except InputError as error:
        print(f"{PROGRAM}: {error}", file=sys.stderr)
        return 2
    return 0


def run(settings: Settings) -> None:
    """Check that both sides agree, time them in turn, print and write the figures.

    Raises:
        InputError: they do not agree.
    """
    records: list[Record] = []
    for name in settings.only.split(","):
        records.append(_compare(name, settings))
        last = records[-1]
        print(f"{name}: {last.ratio:.1f} x ({last.agreement})", file=sys.stderr, flush=True)
        if settings.json is not None:
            write_text(settings.json, json.dumps([dataclasses.asdict(each) for each in records], indent=2) + "\n")
    console = Console(width=None if sys.stdout.isatty() else 160)
    table = Table("name", "work", "reference s", "ragstone s", "ratio", "reference MiB", "ragstone MiB", "agreement")
    for row in map(_cells, records):
        table.add_row(*row)
    console.print(table)
    if settings.results is not None:
        write_text(settings.results, _page(records, settings))


def _compare(name: str, settings: Settings) -> Record:
    work = WORKS[name]
    sides = {side: SIDES[side](_setup(side, work, settings)) for side in SIDES}
    reference = sides["reference"]
    assert isinstance(reference, Reference)
    inputs = _inputs(settings, reference)
    # The first time warms up; what it gives is compared.
    theirs, ours = (work.do(side, inputs) for side in sides.values())
    agreement = work.equal(theirs, ours, not settings.best_precision)
    if agreement is None:
        raise InputError(f"{name} gives {str(theirs)[:200]} in the reference but {str(ours)[:200]} in Ragstone.")
    seconds: dict[str, list[float]] = {side: [] for side in SIDES}
    for _ in range(work.repeats):
        for side, does in sides.items():
            began = time.perf_counter()
            work.do(does, inputs)
            seconds[side].append(time.perf_counter() - began)
    theirs_s, ours_s = (statistics.median(seconds[side]) for side in SIDES)
    peaks = [_peak_of(name, side, settings) for side in SIDES]
    precision = " / ".join(_precision(side, settings) for side in SIDES)
    return Record(name, work.what, theirs_s, ours_s, theirs_s / ours_s, *peaks, agreement, precision)


def _setup(side: str, work: Work, settings: Settings) -> Setup:
    passages, index = source_of(settings.checkpoint, settings.passages_path)
    precision = _precision(side, settings)
    return Setup(str(settings.checkpoint), passages, index, work.model_type, precision, settings.n_docs)


def _precision(side: str, settings: Settings) -> Precision:
    device = best_device()
    if not settings.best_precision:
        return "fp32"
    if side == "reference":
        return "fp16" if device.type == "cuda" else "fp32"
    return "bf16" if fast_bfloat16(device) else "fp32"


def _inputs(settings: Settings, reference: Reference | None) -> Inputs:
    """Questions in the spelling that both sides read; see compare_sides."""
    questions, answers = texts_of(read_examples(settings.data_dir, "test", EVALUATED))
    passages, index = source_of(settings.checkpoint, settings.passages_path)
    source = KnowledgeSource(Path(passages), Path(index))
    rows = np.linspace(0, len(source) - 1, PASSAGES_EMBEDDED).astype(np.int64)
    found = source.store.passages(rows)
    spelled = questions if reference is None else reference.spelled(questions)
    titles, texts = [passage.title for passage in found], [passage.text for passage in found]
    return Inputs(spelled, answers, source.store.vectors(rows[:32]), titles, texts)


def _peak_of(name: str, side: str, settings: Settings) -> float:
    """Of a fresh process."""
    words = [f"--checkpoint={settings.checkpoint}", f"--data_dir={settings.data_dir}", f"--n_docs={settings.n_docs}"]
    words += [f"--only={name}", f"--side={side}"] + (["--best_precision"] if settings.best_precision else [])
    words += [] if settings.passages_path is None else [f"--passages_path={settings.passages_path}"]
    command = [sys.executable, "-m", "benchmarks.compare", *words]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return float(done.stdout.split()[-1])


def _peak(settings: Settings) -> float:
    assert settings.side is not None
    work = WORKS[settings.only]
    side = SIDES[settings.side](_setup(settings.side, work, settings))
    work.do(side, _inputs(settings, side if isinstance(side, Reference) else None))
    # Not getrusage's figure, which a process takes over from the one that started it.
    lines = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM")) / 1024


def _cells(record: Record) -> list[str]:
    times = [f"{record.reference_s:.3f}", f"{record.ragstone_s:.3f}", f"{record.ratio:.1f}"]
    peaks = [f"{record.reference_mib:.0f}", f"{record.ragstone_mib:.0f}"]
    return [record.name, record.work, *times, *peaks, record.agreement]


def _contexts(settings: Settings) -> str:
    """How long what the generator reads is."""
    side = SIDES["ragstone"](_setup("ragstone", WORKS["retrieve"], settings))
    assert isinstance(side, Ragstone)
    questions, _ = texts_of(read_examples(settings.data_dir, "test", 32))
    lengths, limit = side.context_lengths(questions)
    return (
        f"Contexts of the first 32 questions have {min(lengths)} to {max(lengths)} tokens, "
        f"{statistics.mean(lengths):.0f} on average; the reference pads each to {limit}."
    )


def _page(records: Sequence[Record], settings: Settings) -> str:
    header = ["name", "work", "reference s", "Ragstone s", "ratio", "reference MiB", "Ragstone MiB", "agreement"]
    lines = [
        "# Side by side with transformers' Rag classes",
        "",
        f"{datetime.date.today()}, commit {commit()}, {os.cpu_count()} cores of {processor()}, {best_device()}.",
        f"Arithmetic (reference / Ragstone): {records[0].precision}. {settings.n_docs} passages per question.",
        _contexts(settings),
        "",
        f"    {command(PROGRAM, settings)}",
        "",
        *(f"| {' | '.join(row)} |" for row in [header, ["---"] * len(header), *map(_cells, records)]),
        "",
        "RagSequenceForGeneration.generate is repaired on the reference's side: it lets the generator read padding as",
        "text. Dropout is off. The optimiser is AdamW on both sides, the reference's as its own loop makes it.",
        "",
    ]
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
