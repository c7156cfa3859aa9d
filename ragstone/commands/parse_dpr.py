"""ragstone parse-dpr: DPR's retriever data to an evaluation set with gold titles (parse_dpr_relevance_data.py)."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TextIO

from ragstone.errors import InputError
from ragstone.settings import save_settings

BREAKS = re.compile(r"\s*[\t\n\v\f\r\x1c-\x1e\x85\u2028\u2029]\s*")
"""White space that would end a line or a column of the files that are written."""


@dataclass(frozen=True)
class ParseDprSettings:
    evaluation_set: Path
    """File for the questions, one per line; an existing file is replaced."""
    gold_data_path: Path
    """File for the gold titles, a line per question, separated by tabs; an existing file is replaced."""
    src_path: Path = Path("biencoder-nq-dev.json")
    """DPR's retriever data: JSON, plain or gzipped."""
    skip_without_positive: bool = False
    """Skip and count entries without a titled positive context, which are otherwise an error."""

    def __post_init__(self) -> None:
        names = ("src_path", "evaluation_set", "gold_data_path")
        paths = {name: getattr(self, name).resolve() for name in names}
        if len(set(paths.values())) < len(names):
            given = ", ".join(f"--{name} {path}" for name, path in paths.items())
            raise InputError(f"{given}: these must be three different files.")
        for name in names[1:]:
            if not paths[name].parent.is_dir():
                raise InputError(f"--{name} is {paths[name]}, but there is no folder {paths[name].parent}; make it.")
            if paths[name].exists() and not paths[name].is_file():
                raise InputError(f"--{name} is {paths[name]}, which is not a file; give the path of one.")


@dataclass(frozen=True)
class ParsedDpr:
    """What was written."""

    evaluation_set: Path
    gold_data_path: Path
    questions: int
    titles: int
    """Gold titles of all questions together."""
    skipped: int
    """Entries without a titled positive context."""


def parse_dpr(settings: ParseDprSettings) -> ParsedDpr:
    """Turn DPR's retriever data into an evaluation set and gold titles, which appear together or not at all."""
    from ragstone.data.dpr import read_dpr

    questions = titles = skipped = 0
    with _files_made_together([settings.evaluation_set, settings.gold_data_path]) as (evaluation_set, gold):
        for entry in read_dpr(settings.src_path):
            found = [title for title in (_on_one_line(context.title) for context in entry.positives) if title]
            if not found and not settings.skip_without_positive:
                raise InputError(
                    f"{settings.src_path}, entry {entry.number} ({entry.question[:60]!r}) has no positive context with "
                    "a title; take it out, or leave such entries out with --skip_without_positive."
                )
            if not found:
                skipped += 1
                continue
            evaluation_set.write(_on_one_line(entry.question) + "\n")
            gold.write("\t".join(found) + "\n")
            questions, titles = questions + 1, titles + len(found)
        if not questions:
            raise InputError(
                f"{settings.src_path} has no entry with a titled positive context ({skipped} without); give a file "
                "that has some."
            )
    save_settings(settings, settings.evaluation_set.with_name(f"{settings.evaluation_set.name}.settings.yaml"))
    return ParsedDpr(settings.evaluation_set, settings.gold_data_path, questions, titles, skipped)


def show(result: ParsedDpr) -> None:
    """Print what was written."""
    print(f"questions  {result.questions:,} in {result.evaluation_set}")
    print(f"titles     {result.titles:,} in {result.gold_data_path}")
    print(f"skipped    {result.skipped:,} without a positive context")


def _on_one_line(text: str) -> str:
    """The text with line breaks and tabs made blanks, so that it stays one line and one column."""
    return BREAKS.sub(" ", text).strip()


@contextmanager
def _files_made_together(paths: Sequence[Path]) -> Iterator[Sequence[TextIO]]:
    """Text files to write, which take their places when the with-block ends well and are gone when it does not."""
    finals = [path.resolve() for path in paths]
    parts = [path.with_name(f".{path.name}.part") for path in finals]
    try:
        with ExitStack() as stack:
            try:
                files = [stack.enter_context(part.open("w", encoding="utf-8", newline="\n")) for part in parts]
            except OSError as error:
                folder = Path(error.filename).parent
                raise InputError(
                    f"The folder {folder} cannot be written to: {error.strerror}; give files in another one."
                ) from error
            yield files
        for part, final in zip(parts, finals, strict=True):
            part.replace(final)
    finally:
        for part in parts:
            part.unlink(missing_ok=True)
