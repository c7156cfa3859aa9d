"""The figures of compare: as a record, a table on the terminal and a page in Markdown."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from rich.table import Table

COLUMNS = (
    *("name", "arithmetic", "work", "reference s", "Ragstone s", "ratio", "reference MiB", "Ragstone MiB"),
    *("of the machine", "at most", "agreement"),
)


@dataclass(frozen=True)
class Record:
    """One work on both sides."""

    name: str
    work: str
    precision: str
    """The reference's and Ragstone's."""
    reference_s: float
    ragstone_s: float
    ratio: float
    reference_mib: float
    ragstone_mib: float
    agreement: str
    operations: dict[str, int]
    """Floating-point operations that the work needs of each part of the model; empty where they are not counted."""
    of_limit: float | None
    """Ragstone's rate of those, as a part of the machine's own in large matrix products of the same precision."""
    reference_of_limit: float | None
    parts: dict[str, float]
    """Where Ragstone's seconds go, from a run of its own; empty where that was not looked at."""
    runs: int
    """Of which the seconds are the median."""
    size: str
    device: str
    threads: int
    fp32_gflops: float
    """What the machine reaches in large matrix products."""
    bf16_gflops: float | None
    """None where it has no instructions for bfloat16."""
    date: str
    commit: str
    processor: str


def table(records: Sequence[Record]) -> Table:
    """The figures for a terminal."""
    shown = Table(*COLUMNS)
    for record in records:
        shown.add_row(*_row(record))
    return shown


def page(records: Sequence[Record], made: Sequence[str], command: str) -> str:
    """The figures as a page in Markdown.

    Args:
        records: at least one.
        made: what was measured of the questions and the checkpoint, a sentence each.
        command: the command line.
    """
    lines = [
        "# Side by side with transformers' Rag classes",
        "",
        origin(records),
        *made,
        "",
        f"    {command}",
        "",
        *markdown(records),
        "",
        "Arithmetic: the reference's / Ragstone's. Of the machine: Ragstone's useful operations a second, as a part of",
        "what large matrix products reach in its precision. At most: the ratio if they reached all of it.",
        "RagSequenceForGeneration.generate is repaired on the reference's side: it lets the generator read padding as",
        "text. Dropout is off.",
        "",
        "## Where Ragstone's time goes",
        "",
        "Percent of a run of its own.",
        "",
        *parts_table(records),
        "",
        "What the parts that multiply matrices reach in their own time: useful operations a second, in percent of the",
        "machine's.",
        "",
        *rates_table(records),
        "",
    ]
    return "\n".join(lines)


def origin(records: Sequence[Record]) -> str:
    """When, of what commit and on what machine they were measured, which may have been in several runs."""
    commits: dict[str, list[str]] = {}
    for record in records:
        names = commits.setdefault(record.commit, [])
        if record.name not in names:
            names.append(record.name)
    described = [commit if len(commits) == 1 else f"{commit} ({', '.join(names)})" for commit, names in commits.items()]
    first, dates = records[0], sorted({record.date for record in records})
    rates = f"{_span([record.fp32_gflops for record in records])} GFLOP/s in fp32"
    halves = [record.bf16_gflops for record in records if record.bf16_gflops is not None]
    rates += f" and {_span(halves)} in bf16." if halves else "; it has no instructions for bf16, which is left out."
    return (
        f"{', '.join(dates)}, commit {', '.join(described)}, {first.threads} threads of {first.processor}, "
        f"{first.device}, size {first.size}. In large matrix products the machine reached {rates}"
    )


def _span(values: Sequence[float]) -> str:
    low, high = f"{min(values):,.0f}", f"{max(values):,.0f}"
    return low if low == high else f"{low} to {high}"


def markdown(records: Sequence[Record]) -> list[str]:
    """The table, line by line."""
    rows = [list(COLUMNS), ["---"] * len(COLUMNS), *map(_row, records)]
    return [f"| {' | '.join(row)} |" for row in rows]


def parts_table(records: Sequence[Record]) -> list[str]:
    """Where the time goes, a row for each work and a column for each part, line by line."""
    watched = [record for record in records if record.parts]
    names = list(dict.fromkeys(name for record in watched for name in record.parts))
    rows = [["name", "arithmetic", *names], ["---"] * (2 + len(names))]
    for record in watched:
        whole = sum(record.parts.values())
        shares = [f"{100 * record.parts[name] / whole:.0f}" if name in record.parts else "" for name in names]
        rows.append([record.name, record.precision.split(" / ")[1], *shares])
    return [f"| {' | '.join(row)} |" for row in rows]


def rates_table(records: Sequence[Record]) -> list[str]:
    """What each part reaches of the machine, a row for each work, line by line."""
    watched = [record for record in records if record.parts and record.operations]
    names = list(dict.fromkeys(name for record in watched for name in record.operations))
    rows = [["name", "arithmetic", *names], ["---"] * (2 + len(names))]
    for record in watched:
        precision = record.precision.split(" / ")[1]
        rate = 1e9 * ((record.bf16_gflops if precision == "bf16" else None) or record.fp32_gflops)
        reached = [
            f"{100 * record.operations[name] / record.parts[name] / rate:.0f}" if name in record.operations else ""
            for name in names
        ]
        rows.append([record.name, precision, *reached])
    return [f"| {' | '.join(row)} |" for row in rows]


def _row(record: Record) -> list[str]:
    times = [f"{record.reference_s:.3f}", f"{record.ragstone_s:.3f}", f"{record.ratio:.1f}"]
    peaks = [f"{record.reference_mib:.0f}", f"{record.ragstone_mib:.0f}"]
    limits = ["", ""]
    if record.of_limit is not None:
        limits = [f"{record.of_limit:.0%}", f"{record.ratio / record.of_limit:.1f}"]
    return [record.name, record.precision, record.work, *times, *peaks, *limits, record.agreement]
