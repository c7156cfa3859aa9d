from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from ragstone.errors import InputError
from ragstone.knowledge.corpus import Corpus, read_corpus
from ragstone.types import Passage

LINES = ["river\tthe river of the old town\n", "hill\tthe red hill\n", "king\tmara was the king\n"]


@pytest.fixture
def read(tmp_path: Path) -> Callable[..., Corpus]:
    """Writes lines into a file, and reads that."""

    def write_and_read(*lines: str, max_words: int = 3) -> Corpus:
        (tmp_path / "documents.tsv").write_text("".join(lines), encoding="utf-8")
        return read_corpus([tmp_path / "documents.tsv"], max_words)

    return write_and_read


def pairs(groups: list[list[Passage]]) -> list[list[tuple[str, str]]]:
    return [[(passage.title, passage.text) for passage in group] for group in groups]


def test_documents_and_passages_are_counted_and_come_in_groups(read: Callable[..., Corpus]) -> None:
    corpus = read(*LINES)
    assert (corpus.documents, corpus.passages) == (3, 5)
    rivers = [("river", "the river of"), ("river", "the old town")]
    others = [("hill", "the red hill"), ("king", "mara was the"), ("king", "king")]
    assert pairs(list(corpus.groups(2))) == [rivers, others[:2], others[2:]]
    assert pairs(list(corpus.groups(5))) == [rivers + others]
    assert pairs(list(corpus.groups(100))) == [rivers + others]


def test_the_fingerprint_is_that_of_the_passages(read: Callable[..., Corpus], tmp_path: Path) -> None:
    same = [read(*LINES), read(*(line.replace("\n", " \n") for line in LINES)), read(*LINES, "empty\t\n")]
    records = [dict(zip(("title", "text"), line.strip().split("\t"), strict=True)) for line in LINES]
    (tmp_path / "documents.jsonl").write_text("".join(f"{json.dumps(record)}\n" for record in records))
    same.append(read_corpus([tmp_path / "documents.jsonl"], 3))
    assert len({corpus.fingerprint for corpus in same}) == 1
    others = [
        read(*reversed(LINES)),
        read(*LINES[:2]),
        read(*LINES, max_words=4),
        read("river th\te river of the old town\n", *LINES[1:]),
        read(LINES[0].replace("old", "Old"), *LINES[1:]),
    ]
    assert len({corpus.fingerprint for corpus in [same[0], *others]}) == 6


@pytest.mark.parametrize("changed", [LINES[:2], [*LINES, "a\tb\n"], ["river\tthe river of the new town\n", *LINES[1:]]])
def test_documents_that_change_after_they_were_read(read: Callable[..., Corpus], changed: list[str]) -> None:
    corpus = read(*LINES)
    corpus.files[0].write_text("".join(changed), encoding="utf-8")
    with pytest.raises(InputError, match=r"The documents changed while they were read \(there were 5 passages, now"):
        list(corpus.groups(2))


def test_no_text(read: Callable[..., Corpus]) -> None:
    with pytest.raises(InputError, match=r"There is no text in .*documents\.tsv"):
        read("river\t\n")
