"""The figures of the retrieval benchmark: as a record, a table on the terminal and a page in Markdown."""

from __future__ import annotations

import datetime
import math
import os
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from rich.table import Table

from benchmarks.machine import commit, processor
from benchmarks.retrieval_timing import BATCH, N_DOCS, Timed
from benchmarks.synthetic_source import DIMENSION

PYTORCH_MS, PYTORCH_PART = 2.0, 0.2
"""What retrieval through the first process may cost for a batch above the bare search: the larger of the two."""
RAY_MS = 5.0
"""What a Ray worker may cost."""
PEER = (
    "For comparison, the reference's own figures, from another machine: 1.66 s per retrieval with four Ray workers on "
    "four GPUs, 3.4 s with torch.distributed."
)
METHOD = (
    f"Batches of {BATCH} questions, {N_DOCS} passages each, {DIMENSION} dimensions, synthetic vectors in clusters. "
    "hnsw32 has 32 links a node, where build-knowledge takes 128 unless told otherwise. In each process "
    "that is timed, the bare search of the index (all questions of the batch) and the backend alternate, with searches "
    "on the same number of threads, which sleep while they wait. in-process: one process asks. pytorch: two processes "
    f"ask {BATCH // 2} questions each at the same time, the first one searches; a batch lasts from when both asked "
    "until both have their passages. ray-1, ray-2: one process asks one or two workers, one batch at a time; queries "
    "per second of ray-2 with two batches on their way. Overhead is the median of the differences between a batch and "
    "the bare search just before it, so that a machine whose speed moves moves both; behind it, where that median lies "
    "with 95 % confidence. What is allowed is kept or exceeded where all of that range is, else open. "
    f"Allowed: pytorch {PYTORCH_PART:.0%} or {PYTORCH_MS:g} ms, Ray {RAY_MS:g} ms. "
    "It is held against the whole overhead, which contains fetching passages with their vectors, as in-process does."
)
PAUSE = 3.0
"""Seconds for which a page of memory is left alone, before it is read again."""


@dataclass(frozen=True)
class Record:
    """The figures of one backend on one index. Milliseconds are those of a batch."""

    date: str
    commit: str
    processor: str
    cores: int
    vectors: int
    dimension: int
    index: str
    """With what it is built with: hnsw32 has 32 links a node."""
    backend: str
    processes: int
    """That ask at the same time, each for its part of the questions."""
    questions: int
    n_docs: int
    batches: int
    threads: int
    """Of a search, in the backend and alone."""
    bare_median_ms: float
    median_ms: float
    """From when all processes had asked until the last had its part."""
    p99_ms: float
    rank_median_ms: list[float]
    rank_p99_ms: list[float]
    askers: int
    """Batches on their way at a time while queries_per_second was measured; latencies are with one."""
    queries_per_second: float
    overhead_ms: float
    """Median of what a batch takes longer than the bare search just before it."""
    overhead_range_ms: tuple[float, float]
    """Where that median lies with 95 % confidence, see `median_range`."""
    overhead_percent: float
    allowed_ms: float | None
    """What the overhead may be; None for the process that searches itself."""
    within: bool | None
    """Whether it is; None where the range leaves that open, or nothing is said about it."""
    recall_at_5: float
    page_us: tuple[float, float]
    """Microseconds to read a page of memory a moment after it was read, and PAUSE seconds after."""


def record(vectors: int, index: str, backend: str, timed: Timed, page_seconds: tuple[float, float]) -> Record:
    """The figures of what was `timed`; see machine.page_seconds."""
    bare, median = _ms(timed.bare, 50), _ms(timed.whole, 50)
    differences = [whole - bare for whole, bare in zip(timed.whole, timed.bare, strict=True)]
    overhead = _ms(differences, 50)
    low, high = (round(1000 * each, 3) for each in median_range(differences))
    allowed = {"pytorch": max(PYTORCH_MS, PYTORCH_PART * bare), "in-process": None}.get(backend, RAY_MS)
    return Record(
        date=str(datetime.date.today()),
        commit=commit(),
        processor=processor(),
        cores=len(os.sched_getaffinity(0)),
        vectors=vectors,
        dimension=DIMENSION,
        index=index,
        backend=backend,
        processes=len(timed.asked),
        questions=BATCH,
        n_docs=N_DOCS,
        batches=len(timed.bare),
        threads=timed.threads,
        bare_median_ms=bare,
        median_ms=median,
        p99_ms=_ms(timed.whole, 99),
        rank_median_ms=[_ms(seconds, 50) for seconds in timed.by_rank],
        rank_p99_ms=[_ms(seconds, 99) for seconds in timed.by_rank],
        askers=timed.askers,
        queries_per_second=round(timed.queries_per_second, 1),
        overhead_ms=overhead,
        overhead_range_ms=(low, high),
        overhead_percent=round(100 * overhead / bare, 1),
        allowed_ms=None if allowed is None else round(allowed, 3),
        within=None if allowed is None or low <= allowed < high else high <= allowed,
        recall_at_5=round(timed.recall, 4),
        page_us=(round(1e6 * page_seconds[0], 3), round(1e6 * page_seconds[1], 3)),
    )


def median_range(values: Sequence[float]) -> tuple[float, float]:
    """Where the median lies with 95 % confidence whatever the distribution: between two of the values in order.

    The number of values below the median is binomial, here by its normal approximation; with few values, all of them.
    """
    ordered, count = sorted(values), len(values)
    reach = 1.96 * math.sqrt(count) / 2
    return ordered[max(0, math.floor(count / 2 - reach))], ordered[min(count - 1, math.ceil(count / 2 + reach))]


def memory(first: Record) -> str:
    """What is to be known of the machine's memory."""
    soon, later = first.page_us
    return (
        f"Memory: to read a page again takes {soon:.2f} µs here a moment later, and {later:.1f} µs {PAUSE:g} s later. "
        "A cache miss takes some tenths of one; far more is due to the host of a virtual machine. The passages of a "
        "batch, with what says where they are, lie on a thousand pages and more, and come again sixteen batches later."
    )


def table(records: Sequence[Record]) -> Table:
    """The figures for a terminal."""
    shown = Table(title=f"Retrieval: batches of {BATCH} questions, {N_DOCS} passages each, milliseconds per batch")
    for number, name in enumerate(COLUMNS):
        shown.add_column(name, justify="left" if number in LEFT else "right")
    for row in map(_row, records):
        shown.add_row(*row)
    return shown


def page(records: Sequence[Record], left_out: Sequence[str], command: str) -> str:
    """The figures as a page in Markdown.

    Args:
        records: of one run.
        left_out: sentences on what was not measured.
        command: that was run.
    """
    first = records[0]
    bars = ["---" if number in LEFT else "---:" for number in range(len(COLUMNS))]
    lines = [
        "# Retrieval: each backend above the bare index search",
        "",
        f"{first.date}, commit {first.commit}, {first.cores} cores of {first.processor}.",
        "",
        f"    {command}",
        "",
        METHOD,
        "",
        memory(first),
        "",
        *(f"| {' | '.join(cells)} |" for cells in [list(COLUMNS), bars, *map(_row, records)]),
        "",
        *(text for paragraph in (*_by_rank(records), *left_out) for text in (paragraph, "")),
        PEER,
    ]
    return "\n".join(lines) + "\n"


COLUMNS = (
    "vectors",
    "index",
    "backend",
    "threads",
    "batches",
    "bare median",
    "median",
    "p99",
    "queries/s",
    "overhead",
    "overhead %",
    "allowed",
    "recall@5",
)
LEFT = (1, 2)
VERDICTS = {True: "kept", False: "exceeded", None: "open"}


def _row(each: Record) -> list[str]:
    verdict = "" if each.allowed_ms is None else f"{each.allowed_ms:.2f} {VERDICTS[each.within]}"
    low, high = each.overhead_range_ms
    return [
        f"{each.vectors:,}",
        each.index,
        each.backend,
        str(each.threads),
        str(each.batches),
        f"{each.bare_median_ms:.2f}",
        f"{each.median_ms:.2f}",
        f"{each.p99_ms:.2f}",
        f"{each.queries_per_second:,.0f}",
        f"{each.overhead_ms:+.2f} ({low:+.2f} to {high:+.2f})",
        f"{each.overhead_percent:+.1f}",
        verdict,
        f"{each.recall_at_5:.3f}",
    ]


def _by_rank(records: Sequence[Record]) -> list[str]:
    """What the table leaves out of backends that several processes ask."""
    parts = [
        f"{each.vectors:,} {each.index} "
        + " and ".join(
            f"{median:.2f} ({p99:.2f})" for median, p99 in zip(each.rank_median_ms, each.rank_p99_ms, strict=True)
        )
        for each in records
        if each.processes > 1
    ]
    return [f"Median (p99) of pytorch by rank, in milliseconds: {'; '.join(parts)}."] if parts else []


def _ms(seconds: Sequence[float], percentile: float) -> float:
    return round(1000 * float(np.percentile(seconds, percentile)), 3)
