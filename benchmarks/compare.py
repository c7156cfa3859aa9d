"""Ragstone side by side with transformers' Rag classes: the same checkpoint, source and questions, in turn in one run.

    python -m benchmarks.compare --data_dir DIR --work_dir DIR [--size small|base|large] [--device cpu|cuda]
        [--only NAME,...] [--json FILE] [--results FILE.md]

--data_dir holds knowledge.tsv; train, val and test .source and .target. What is made of it (knowledge source,
tokenizer, checkpoint) stays in --work_dir for the next run. Both sides do each work in fp32 and in bf16 in turn; what
they give is compared before a time counts. A record is written for equal arithmetic (fp32) and one for the precision in
which each side is fastest. Peak memory is that of a fresh process that does the work once. A training step is timed,
and its memory measured, behind some others.
"""

from __future__ import annotations

import dataclasses
import json
import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
from rich.console import Console

from benchmarks.checkpoint import SIZES, Workplace
from benchmarks.compare_bench import Bench, Material
from benchmarks.compare_record import Record, page, table
from benchmarks.compare_works import ANSWERED, OPEN, WORKS
from benchmarks.machine import command
from ragstone.data.examples import read_examples
from ragstone.encoders.precision import best_device
from ragstone.errors import InputError
from ragstone.output import write_text
from ragstone.settings import parse_settings

PROGRAM = "python -m benchmarks.compare"
NAMES = (*WORKS, OPEN)
EMBEDDED = {"cpu": 64, "cuda": 4096}
"""Passages that build_knowledge embeds."""


@dataclass(frozen=True)
class Settings:
    """Flags of this benchmark."""

    data_dir: Path
    """Holds knowledge.tsv; train, val and test .source and .target."""
    work_dir: Path
    """Where knowledge sources and checkpoints are made; those that are there are used again."""
    size: Literal["small", "base", "large"] = "small"
    """Which checkpoint: small is trained for a few minutes, base and large have random weights, for GPUs."""
    device: Literal["cpu", "cuda"] | None = None
    """Where to compute; a GPU, if there is one, where not given."""
    only: str = ",".join(NAMES)
    """Which works."""
    precise: bool = False
    """In fp32 only."""
    checkpoint: Path | None = None
    """A trained RAG checkpoint to take instead, with --passages_path."""
    passages_path: Path | None = None
    """The knowledge source of --checkpoint."""
    passage_encoder: Path | None = None
    """What build_knowledge embeds with; an encoder of BERT-base's shape where not given."""
    n_docs: int = 5
    """Passages per question."""
    repeats: int | None = None
    """Timed runs of each work; 1 to 15 where not given, as the work is long."""
    embedded: int | None = None
    """Passages that build_knowledge embeds; 64, or 4,096 on a GPU, where not given."""
    evaluated: int = 200
    """Questions that evaluate answers."""
    opened: int = 1_000_000
    """Passages of the synthetic source that open opens."""
    json: Path | None = None
    """Write the figures here, as a list of records."""
    results: Path | None = None
    """Write them here, as a page in Markdown."""

    def __post_init__(self) -> None:
        other = set(self.only.split(",")) - set(NAMES)
        if other:
            raise InputError(f"--only names {min(other)!r}; there are {', '.join(NAMES)}.")
        if (self.checkpoint is None) != (self.passages_path is None):
            raise InputError("--checkpoint and --passages_path belong together; give both or neither.")
        for name in ("n_docs", "repeats", "embedded", "evaluated", "opened"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise InputError(f"--{name} is {value}, but must be at least 1.")


def main(arguments: Sequence[str]) -> int:
    """Run the benchmark as the command line says, and return the exit code."""
    try:
        settings = parse_settings(Settings, arguments, PROGRAM, "Time Ragstone beside transformers' Rag classes.")
        choose_device(settings.device)
        run(settings)
    except InputError as error:
        print(f"{PROGRAM}: {error}", file=sys.stderr)
        return 2
    return 0


def choose_device(device: str | None) -> None:
    """Let this process and those that it starts compute on `device`.

    Raises:
        InputError: there is no GPU.
    """
    if device == "cpu":
        os.environ["CUDA_VISIBLE_DEVICES"] = ""
    elif device == "cuda" and not torch.cuda.is_available():
        raise InputError("--device is cuda, but torch sees no GPU here; leave it out to compute on the CPU.")


def run(settings: Settings) -> None:
    """Check that both sides agree, time them in turn, print and write the figures.

    Raises:
        InputError: data that cannot be used, or the sides do not agree.
    """
    asked = len(read_examples(settings.data_dir, "test", settings.evaluated))
    if asked < ANSWERED:
        raise InputError(
            f"{settings.data_dir / 'test.source'} gives {asked} questions with --evaluated {settings.evaluated}, and "
            f"{ANSWERED} are answered; give more."
        )
    size = settings.size if settings.checkpoint is None else f"of {settings.checkpoint.name}"
    bench = Bench(material(settings), size, settings.repeats, settings.precise)
    records: list[Record] = []
    for name in settings.only.split(","):
        found = bench.open(settings.opened) if name == OPEN else bench.compare(name)
        records += found
        for record in found:
            print(
                f"{name}: {record.ratio:.1f} x in {record.precision} ({record.agreement})", file=sys.stderr, flush=True
            )
        if settings.json is not None:
            # A long run that is cut off keeps what it has.
            write_text(settings.json, json.dumps([dataclasses.asdict(each) for each in records], indent=2) + "\n")
    Console(width=None if sys.stdout.isatty() else 200).print(table(records))
    made = bench.described()
    for sentence in made:
        print(sentence)
    if settings.results is not None:
        write_text(settings.results, page(records, made, command(PROGRAM, settings)))


def material(settings: Settings) -> Material:
    """What is compared, made where it is not there yet."""
    size, place = SIZES[settings.size], Workplace(settings.work_dir, settings.data_dir)
    return Material(
        checkpoint=settings.checkpoint or place.checkpoint(settings.size, size),
        source=settings.passages_path or place.source(size),
        passage_encoder=settings.passage_encoder or place.bert(),
        data_dir=settings.data_dir,
        work_dir=settings.work_dir,
        n_docs=settings.n_docs,
        evaluated=settings.evaluated,
        embedded=settings.embedded or EMBEDDED[best_device().type],
    )


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
