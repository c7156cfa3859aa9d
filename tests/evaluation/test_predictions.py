"""Predictions on disk: the reference's lines, passages and record beside them, whole or not at all."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Iterator
from pathlib import Path

import pytest

from ragstone.errors import InputError
from ragstone.evaluation.predictions import (
    Origin,
    Prediction,
    PredictionFile,
    answer_prediction,
    questions_fingerprint,
    titles_prediction,
)
from ragstone.model.answers import Answer, ScoredPassage
from ragstone.types import Passage

QUESTIONS = ["who founded the town?", "what is blue?"]
ORIGIN = Origin(
    eval_mode="e2e",
    questions=questions_fingerprint(QUESTIONS),
    model="models/rag",
    model_type="rag_token",
    model_fingerprint="m1",
    source_fingerprint="s1",
    settings={"n_docs": 2, "num_beams": 4},
)


def found(title: str, posterior: float = 0.5) -> ScoredPassage:
    return ScoredPassage(Passage(3, title, f"the text of {title} — été"), 1.5, 0.25, posterior)


def predictions() -> list[Prediction]:
    return [
        answer_prediction(QUESTIONS[0], Answer("otto", -1.0, (found("town"), found("hill")))),
        answer_prediction(QUESTIONS[1], Answer("", -2.0, (found("river"),))),
    ]


@pytest.fixture
def file(tmp_path: Path) -> PredictionFile:
    file = PredictionFile(tmp_path / "made here" / "predictions.txt")
    file.write(predictions(), ORIGIN)
    return file


def test_what_is_written_is_read_back(file: PredictionFile) -> None:
    assert file.path.read_text(encoding="utf-8") == "otto\n\n"
    assert file.lines(2) == ["otto", ""]
    assert file.origin() == ORIGIN
    assert list(file.predictions(QUESTIONS)) == predictions()
    assert sorted(path.name for path in file.path.parent.iterdir()) == [
        "predictions.txt",
        "predictions.txt.json",
        "predictions.txt.jsonl",
    ]


def test_an_answer_with_line_breaks_is_one_line() -> None:
    assert answer_prediction("q", Answer(" one\n two\u2028three\r", 0.0, ())).line == "one two three"


def test_titles_are_the_references_line(tmp_path: Path) -> None:
    """Without wiki_dpr's quotes around titles; a tab within a title would make two of it."""
    passages = (found('"Old Bridge"'), found("a\ttab"), found('5" pipe'), found(""), found("x", math.nan))
    prediction = titles_prediction("q", passages)
    assert prediction.line == 'Old Bridge\ta tab\t5" pipe\t\tx'
    file = PredictionFile(tmp_path / "titles.txt")
    file.write([prediction], ORIGIN)
    (read,) = file.predictions(["q"])
    assert read.line == prediction.line
    assert math.isnan(read.passages[-1].posterior)
    json.loads(file.beside("jsonl").read_text(), parse_constant=lambda name: pytest.fail(f"{name} is not JSON"))


def test_an_interruption_leaves_what_was_there(file: PredictionFile) -> None:
    def breaks_off() -> Iterator[Prediction]:
        yield predictions()[0]
        raise KeyboardInterrupt

    before = {path: path.read_bytes() for path in file.path.parent.iterdir()}
    with pytest.raises(KeyboardInterrupt):
        file.write(breaks_off(), dataclasses.replace(ORIGIN, model="other"))
    assert {path: path.read_bytes() for path in file.path.parent.iterdir()} == before


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({}, []),
        ({"model": "moved/rag"}, []),
        ({"questions": "other"}, ["the evaluation set"]),
        ({"eval_mode": "retrieval"}, ["--eval_mode (e2e then, retrieval now)"]),
        ({"model_fingerprint": "m2", "model": "b"}, ["the model's weights or settings (models/rag then, b now)"]),
        ({"model_type": "rag_sequence"}, ["the model type (rag_token then, rag_sequence now)"]),
        ({"source_fingerprint": "s2"}, ["the knowledge source"]),
        (
            {"settings": {"n_docs": 3, "max_length": 9}},
            ["--max_length (None then, 9 now)", "--n_docs (2 then, 3 now)", "--num_beams (4 then, None now)"],
        ),
    ],
)
def test_differences_are_told(changes: dict[str, object], told: list[str]) -> None:
    assert ORIGIN.differences(dataclasses.replace(ORIGIN, **changes)) == told


@pytest.mark.parametrize("ending", ["", "jsonl"])
def test_a_file_that_was_edited_is_noticed(file: PredictionFile, ending: str) -> None:
    path = file.beside(ending) if ending else file.path
    path.write_text(path.read_text(encoding="utf-8").replace("otto", "mara"), encoding="utf-8")
    with pytest.raises(InputError, match=r"is not as it was written .*--recalculate"):
        file.origin()


def test_a_damaged_record(file: PredictionFile) -> None:
    file.beside("json").write_text('{"eval_mode": "e2e"}')
    with pytest.raises(InputError, match=r"predictions.txt.json is not a record of predictions .*--recalculate"):
        file.origin()


def test_a_file_without_a_record(tmp_path: Path) -> None:
    """As the reference writes one: no line break at the end."""
    path = tmp_path / "by hand.txt"
    path.write_text("otto\nthe river", encoding="utf-8")
    file = PredictionFile(path)
    assert file.origin() is None
    assert [(p.line, p.passages) for p in file.predictions(QUESTIONS)] == [("otto", ()), ("the river", ())]
    with pytest.raises(InputError, match=r"by hand.txt has 2 lines, but the evaluation set has 3 questions"):
        file.lines(3)


def test_a_folder_that_cannot_be_made(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match=r"p.txt cannot be written: "):
        PredictionFile(tmp_path / "file" / "p.txt").write(predictions(), ORIGIN)
    assert [path.name for path in tmp_path.iterdir()] == ["file"]
