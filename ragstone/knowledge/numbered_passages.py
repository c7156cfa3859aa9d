"""Passages that were split elsewhere: psgs_w100.tsv of DPR and files like it, with id, text and title on each line."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from ragstone.errors import InputError
from ragstone.knowledge.documents import csv_rows
from ragstone.progress import track

COLUMNS = ("id", "text", "title")
"""In DPR's order, which counts where the file has no header."""


@dataclass(frozen=True, slots=True)
class NumberedPassage:
    """A passage with the name that its vector has."""

    id: str
    title: str
    text: str
    line: int


@dataclass(frozen=True)
class PassageCount:
    """What a file of passages holds."""

    passages: int
    documents: int
    """Titles, those of one after the other counted once."""
    max_words: int
    """Of the longest passage."""


def read_numbered(path: Path) -> Iterator[NumberedPassage]:
    """The passages of a tab-separated file, plain or .gz, streamed.

    Raises:
        InputError: names file and line of what cannot be read.
    """
    rows = csv_rows(path, delimiter="\t")
    first = next(rows, None)
    if first is None:
        raise InputError(f"{path} is empty; it should hold id, text and title on each line.")
    names = [name.strip().lower() for name in first[1]]
    if set(COLUMNS) <= set(names):
        order = [names.index(name) for name in COLUMNS]
    else:
        names, order, rows = list(COLUMNS), [0, 1, 2], itertools.chain([first], rows)
    for line, row in rows:
        if len(row) != len(names):
            raise InputError(
                f"{path}, line {line}: {len(row)} column(s) instead of {len(names)}; a line holds an id, a text and a "
                "title, with tabs between them."
            )
        number, text, title = (row[place] for place in order)
        yield NumberedPassage(number, title, text, line)


def count_numbered(path: Path) -> PassageCount:
    """Read the file through once, before hours go into using it.

    Raises:
        InputError: see read_numbered; also if there are no passages.
    """
    passages = documents = max_words = 0
    title = None
    for passage in track(read_numbered(path), "Reading"):
        passages += 1
        documents += passage.title != title
        title = passage.title
        max_words = max(max_words, passage.text.count(" ") + 1)
    if not passages:
        raise InputError(f"{path} holds no passages; it should hold id, text and title on each line.")
    return PassageCount(passages, documents, max_words)
