"""The results of scripts/openqa.sh as a table: python -m benchmarks.openqa_table OUT_DIR writes OUT_DIR/table.md."""

from __future__ import annotations

import datetime
import json
import os
import sys
from pathlib import Path
from typing import Any

import yaml

from benchmarks.machine import commit, processor

ROWS = (
    ("RAG-Sequence", "rag.txt", ("em", "f1", "recall_at_3")),
    ("closed book", "closed.txt", ("em", "f1")),
    (
        "retrieval, MiniLM",
        "minilm.titles",
        ("precision_at_1", "mrr_title", "recall_at_5", "recall_at_20", "recall_at_100"),
    ),
    (
        "retrieval, trained",
        "rag.titles",
        ("precision_at_1", "mrr_title", "recall_at_5", "recall_at_20", "recall_at_100"),
    ),
)


def main(folder: Path) -> None:
    """Write and print the table."""
    manifest = json.loads((folder / "knowledge" / "knowledge.json").read_text(encoding="utf-8"))
    lines = [
        "# Real questions over real passages",
        "",
        f"scripts/openqa.sh, {datetime.date.today()}, commit {commit()}, {os.cpu_count()} cores of {processor()}.",
        "",
        f"Knowledge source: {manifest['documents']:,} documents, {manifest['passages']:,} passages of at most "
        f"{manifest['max_words']} words, {manifest['dimension']} dimensions, index {manifest['index']}, embedded in "
        f"{manifest['statistics']['seconds_embedding']:,.0f} s.",
        f"Searched, and exactly without Ragstone: {(folder / 'exact.txt').read_text(encoding='utf-8').strip()}.",
        f"Steps: practice {_setting(folder, 'rag_practice', 'max_steps')}, questions "
        f"{_setting(folder, 'rag_run', 'max_steps')}, RAG and closed book alike.",
        "",
        "| system | split | measure | percent | 95 % interval |",
        "|---|---|---|---|---|",
    ]
    for split in ("val", "test"):
        for system, name, measures in ROWS:
            scores = _record(folder, split, name)["scores"]
            for measure in measures:
                score = scores[measure]
                lines.append(
                    f"| {system} | {split} ({score['n']:,}) | {measure} | {score['value']:.1f} | "
                    f"{score['low']:.1f} to {score['high']:.1f} |"
                )
    lines += ["", "RAG against closed book, paired on the same questions:", ""]
    for split in ("val", "test"):
        for name, comparison in _record(folder, split, "rag.txt")["comparisons"].items():
            verdict = "significant" if comparison["significant"] else "not significant"
            lines.append(
                f"- {split}, {name}: {comparison['difference']:+.1f} ({comparison['low']:+.1f} to "
                f"{comparison['high']:+.1f}), p = {comparison['p_value']:.4f}, {verdict} at 5 %"
            )
    text = "\n".join(lines) + "\n"
    (folder / "table.md").write_text(text, encoding="utf-8")
    print(text)


def _record(folder: Path, split: str, name: str) -> Any:
    return json.loads((folder / "eval" / f"{split}.{name}.metrics.json").read_text(encoding="utf-8"))


def _setting(folder: Path, run: str, name: str) -> Any:
    return yaml.safe_load((folder / run / "settings.yaml").read_text(encoding="utf-8"))[name]


if __name__ == "__main__":
    main(Path(sys.argv[1]))
