"""Pictures and tables in the documentation, drawn anew from the benchmarks' figures.

    python -m benchmarks.pictures [--results benchmarks/results] [--root .]

reads compare.json and growth.json in --results; writes docs/images/, and what stands between the marks in README.md and
docs/performance.md.
"""

from __future__ import annotations

import itertools
import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.compare_record import Record, markdown, origin, parts_table, rates_table
from benchmarks.growth import Point
from ragstone.errors import InputError
from ragstone.output import write_text
from ragstone.settings import parse_settings

PROGRAM = "python -m benchmarks.pictures"
OURS, THEIRS, BEST = "#1f6f8b", "#c0703a", "#8fc1d1"
AXES = {
    "passages": "passages per question",
    "corpus": "passages in the knowledge source",
    "target": "tokens of an answer",
}
STYLES = {"train": "-", "generate": "--", "hnsw": "-", "ivfpq": "--"}
CURVES = {"train": "training step", "generate": "beam search", "hnsw": "HNSW index", "ivfpq": "compressed index"}
OPTIONS = {"svg.hashsalt": "ragstone", "svg.fonttype": "none", "font.size": 10}
"""The same figures give the same file."""


@dataclass(frozen=True)
class Settings:
    """Flags of this program."""

    results: Path = Path("benchmarks/results")
    """Folder with compare.json and growth.json; what is not there is not drawn."""
    root: Path = Path()
    """The repository, whose README.md and docs/ are written."""


def main(arguments: Sequence[str]) -> int:
    """Draw as the command line says, and return the exit code."""
    try:
        settings = parse_settings(Settings, arguments, PROGRAM, "Draw the documentation's pictures and tables anew.")
        for path in draw(settings):
            print(path)
    except InputError as error:
        print(f"{PROGRAM}: {error}", file=sys.stderr)
        return 2
    return 0


def draw(settings: Settings) -> list[Path]:
    """Write pictures and tables; the files that were written.

    Raises:
        InputError: there are no figures.
    """
    compared = [Record(**each) for each in _read(settings.results / "compare.json")]
    points = [Point(**each) for each in _read(settings.results / "growth.json")]
    if not compared and not points:
        raise InputError(f"{settings.results} has neither compare.json nor growth.json; run the benchmarks first.")
    folder = settings.root / "docs" / "images"
    folder.mkdir(parents=True, exist_ok=True)
    pictures, blocks = {}, {}
    if compared:
        pictures["Times as fast as transformers' Rag classes"] = _ratios(compared, folder / "compare.svg")
        blocks = {"machine": [origin(compared)], "all": markdown(compared), "parts": parts_table(compared)}
        blocks["rates"] = rates_table(compared)
        blocks["ratios"] = [*_shown(pictures), "", *short_table(compared)]
    grown = {}
    for axis, group in itertools.groupby(sorted(points, key=lambda each: each.axis), lambda each: each.axis):
        grown[f"Milliseconds per question by {AXES[axis]}"] = _growth(axis, list(group), folder / f"growth-{axis}.svg")
    if grown:
        blocks["growth"] = _shown(grown)
    pages = [settings.root / "README.md", settings.root / "docs" / "performance.md"]
    for page in pages:
        # A picture's path is that from the page.
        place = "docs/images/" if page.name == "README.md" else "images/"
        own = {name: [line.replace("images/", place) for line in lines] for name, lines in blocks.items()}
        write_text(page, filled(page.read_text(encoding="utf-8"), own))
    return [*pictures.values(), *grown.values(), *pages]


def _shown(pictures: dict[str, Path]) -> list[str]:
    return [f"![{title}](images/{path.name})" for title, path in pictures.items()]


def short_table(records: Sequence[Record]) -> list[str]:
    """A row for each work: the ratio in equal arithmetic and at best, and the peaks of memory, line by line."""
    rows = [["work", "", "in fp32", "each at its best", "memory, fp32", "at its best"], ["---"] * 6]
    for name, group in itertools.groupby(records, lambda each: each.name):
        equal, *more = group
        best = more[0] if more else equal
        memory = [f"{each.reference_mib:,.0f} → {each.ragstone_mib:,.0f} MiB" for each in (equal, best)]
        rows.append([f"`{name}`", equal.work, f"{equal.ratio:.1f}×", f"{best.ratio:.1f}×", *memory])
    return [f"| {' | '.join(row)} |" for row in rows]


def filled(text: str, tables: dict[str, list[str]]) -> str:
    """`text` with what stands between a mark <!-- NAME --> and <!-- /NAME --> replaced by the lines of that name."""
    for name, lines in tables.items():
        opening, closing = f"<!-- {name} -->", f"<!-- /{name} -->"
        if opening in text and closing in text:
            before, rest = text.split(opening, 1)
            text = "\n".join([before + opening, *lines, closing + rest.split(closing, 1)[1]])
    return text


def _read(path: Path) -> list[dict[str, Any]]:
    if not path.is_file():
        return []
    found: list[dict[str, Any]] = json.loads(path.read_text(encoding="utf-8"))
    return found


def _ratios(records: Sequence[Record], path: Path) -> Path:
    """Bars: how many times faster."""
    plt = _pyplot()
    names = list(dict.fromkeys(record.name for record in records))
    kinds = {"equal arithmetic (fp32)": (OURS, 0), "each at its best precision": (BEST, 1)}
    figure, axes = plt.subplots(figsize=(8, 0.55 * len(names) + 1.2))
    ratios = [[record.ratio for record in records if record.name == name] for name in names]
    pairs = any(len(found) > 1 for found in ratios)
    for label, (colour, place) in kinds.items():
        known = [(row, found[place]) for row, found in enumerate(ratios) if len(found) > place]
        if not known:
            continue
        rows = [row + (0.38 * place - 0.19 if pairs else 0) for row, _ in known]
        bars = axes.barh(rows, [ratio for _, ratio in known], 0.36, color=colour, label=label)
        axes.bar_label(bars, [f"{ratio:.1f}×" for _, ratio in known], padding=3, fontsize=9)
    axes.axvline(1, color="#444444", linewidth=1)
    axes.set_yticks(range(len(names)), names)
    axes.invert_yaxis()
    axes.margins(x=0.12)
    axes.set_xlabel("times as fast as transformers' Rag classes (1: as fast)")
    axes.spines[["top", "right"]].set_visible(False)
    _legend_above(axes)
    return _save(figure, path)


def _growth(axis: str, points: Sequence[Point], path: Path) -> Path:
    """Lines: milliseconds per question."""
    plt = _pyplot()
    from matplotlib.ticker import LogLocator

    figure, axes = plt.subplots(figsize=(6.5, 4))
    for curve, side in dict.fromkeys((point.curve, point.side) for point in points):
        line = sorted((point.at, point.ms) for point in points if (point.curve, point.side) == (curve, side))
        name, colour = ("Ragstone", OURS) if side == "ragstone" else ("reference", THEIRS)
        axes.plot(*zip(*line, strict=True), STYLES[curve], color=colour, marker="o", label=f"{CURVES[curve]}, {name}")
    axes.set_xscale("log")
    axes.set_yscale("log")
    ticks = sorted({point.at for point in points})
    axes.set_xticks(ticks, [f"{tick:,}" for tick in ticks])
    axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.yaxis.set_major_formatter("{x:,g}")
    axes.minorticks_off()
    axes.set_xlabel(AXES[axis])
    axes.set_ylabel("milliseconds per question")
    axes.grid(axis="y", color="#dddddd")
    axes.spines[["top", "right"]].set_visible(False)
    _legend_above(axes)
    return _save(figure, path)


def _legend_above(axes: Any) -> None:
    """Lines and bars may be anywhere below."""
    axes.legend(frameon=False, ncols=2, loc="lower center", bbox_to_anchor=(0.5, 1.0))


def _pyplot() -> Any:
    import matplotlib

    matplotlib.use("svg")
    settings: Any = matplotlib.rcParams
    settings.update(OPTIONS)
    from matplotlib import pyplot

    return pyplot


def _save(figure: Any, path: Path) -> Path:
    figure.tight_layout()
    figure.savefig(path, metadata={"Date": None})
    _pyplot().close(figure)
    return path


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
