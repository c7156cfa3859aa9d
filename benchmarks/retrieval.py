"""What each way of retrieval costs above the bare index search.

    python -m benchmarks.retrieval --folder DIR [--sizes 10000,100000,1000000] [--indexes flat,hnsw,ivfpq]
        [--backends in-process,pytorch,ray-1,ray-2] [--json FILE] [--results benchmarks/results/retrieval.md]

How it is measured stands in retrieval_record.METHOD. A million vectors take 10 GB of disk with all three indexes.
"""

from __future__ import annotations

import dataclasses
import json
import shutil
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median

from rich.console import Console

from benchmarks.machine import command, page_seconds
from benchmarks.retrieval_record import METHOD, PAUSE, PEER, Record, memory, page, record, table
from benchmarks.retrieval_timing import BACKENDS, Task, Timed, timed
from benchmarks.synthetic_source import SyntheticSource, estimated_seconds
from ragstone.errors import InputError, LostError
from ragstone.output import write_text
from ragstone.settings import parse_settings

PROGRAM = "python -m benchmarks.retrieval"
INDEXES = ("flat", "hnsw", "ivfpq")
SLOW = 15 * 60
"""Seconds; an index that takes longer to build is left out unless --slow is given or it is there already."""


@dataclass(frozen=True)
class Settings:
    """Flags of this benchmark."""

    folder: Path
    """Where knowledge sources are made; those that are there are used again."""
    sizes: str = "10000,100000,1000000"
    """How many vectors."""
    indexes: str = ",".join(INDEXES)
    """Which indexes over them."""
    backends: str = ",".join(BACKENDS)
    """Which ways of retrieval."""
    m: int = 32
    """Links of an hnsw node; build-knowledge's 128 would take four times as long to build."""
    slow: bool = False
    """Build indexes that take more than about 15 minutes, too."""
    batches: int | None = None
    """Timed batches; where not given, 300, or 100 from 0.1 s per batch on, or 30 from 1 s on."""
    json: Path | None = None
    """Write the figures here, as a list of records."""
    results: Path | None = None
    """Write them here, as a page in Markdown."""

    def __post_init__(self) -> None:
        if not all(size.isdecimal() and int(size) > 0 for size in self.sizes.split(",")):
            raise InputError(f"--sizes is {self.sizes!r}; give whole numbers above 0 with commas between them.")
        for flag, given, known in (("indexes", self.indexes, INDEXES), ("backends", self.backends, tuple(BACKENDS))):
            other = set(given.split(",")) - set(known)
            if other:
                raise InputError(f"--{flag} names {min(other)!r}; there are {', '.join(known)}.")
        if self.batches is not None and self.batches < 1:
            raise InputError(f"--batches is {self.batches}; give at least 1.")


def main(arguments: Sequence[str]) -> int:
    """Run the benchmark as the command line says, and return the exit code."""
    try:
        settings = parse_settings(Settings, arguments, PROGRAM, "Time the ways of retrieval against the bare search.")
        run(settings, command(PROGRAM, settings))
    except (InputError, LostError) as error:
        print(f"{PROGRAM}: {error}", file=sys.stderr)
        return 2
    return 0


def run(settings: Settings, line: str) -> None:
    """Build what is missing, time what `settings` name, print and write the figures; `line` is the command for it.

    Raises:
        InputError: the disk has no room.
    """
    records: list[Record] = []
    left_out: list[str] = []
    memory_seconds: tuple[float, float] | None = None
    for size in map(int, settings.sizes.split(",")):
        source = SyntheticSource(settings.folder, size)
        for index in settings.indexes.split(","):
            estimate = estimated_seconds(index, size, settings.m)
            there = source.index_path(index, settings.m).is_file()
            if estimate > SLOW and not settings.slow and not there:
                left_out.append(
                    f"Left out: {index} over {size:,} vectors, whose building takes about {estimate / 60:.0f} minutes "
                    "on these cores; --slow builds it."
                )
                continue
            _build(source, index, settings)
            for backend in settings.backends.split(","):
                memory_seconds = memory_seconds or page_seconds(PAUSE)
                found = _measure(source, index, backend, settings)
                name = source.index_path(index, settings.m).stem
                records.append(record(size, name, backend, found, memory_seconds))
                # A run of hours that is cut off keeps what it has.
                _write(settings, records, left_out, line)
    console = Console(width=None if sys.stdout.isatty() else 160)
    console.print(table(records))
    for text in (METHOD, *map(memory, records[:1]), *left_out, PEER):
        console.print(text, highlight=False, markup=False)
    _write(settings, records, left_out, line)


def _build(source: SyntheticSource, index: str, settings: Settings) -> None:
    """Write what is not there yet."""
    began = time.perf_counter()
    _refuse_full_disk(settings.folder, source.bytes_needed(index, settings.m))
    source.write_passages()
    written = time.perf_counter()
    source.write_index(index, settings.m)
    _tell(
        f"{source.size:,} {index}: passages there after {written - began:.0f} s, the index "
        f"{time.perf_counter() - written:.0f} s later"
    )


def _measure(source: SyntheticSource, index: str, backend: str, settings: Settings) -> Timed:
    began = time.perf_counter()
    task = Task(
        backend=BACKENDS[backend],
        passages_path=str(source.passages_path),
        index_path=str(source.index_path(index, settings.m)),
        questions=source.questions(),
        exact=source.exact_scores(),
        batches=settings.batches,
    )
    found = timed(task)
    _tell(
        f"{source.size:,} {index} {backend}: bare {1000 * median(found.bare):.2f} ms, backend "
        f"{1000 * median(found.whole):.2f} ms, {len(found.bare)} batches, {time.perf_counter() - began:.0f} s in all"
    )
    return found


def _tell(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def _write(settings: Settings, records: Sequence[Record], left_out: Sequence[str], line: str) -> None:
    if settings.json is not None:
        write_text(settings.json, json.dumps([dataclasses.asdict(each) for each in records], indent=2) + "\n")
    if settings.results is not None and records:
        write_text(settings.results, page(records, left_out, line))


def _refuse_full_disk(folder: Path, needed: int) -> None:
    free = shutil.disk_usage(next(path for path in (folder, *folder.resolve().parents) if path.is_dir())).free
    if needed > free:
        raise InputError(
            f"--folder {folder} has {free / 1e9:.1f} GB free, {needed / 1e9:.1f} GB are needed; give another folder or "
            "smaller --sizes."
        )


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
