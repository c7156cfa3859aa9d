"""An evaluation's task and the settings its predictions are recorded with."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest

from ragstone.encoders.precision import best_device, fast_bfloat16
from ragstone.evaluation.evaluate import Search, Task, measure, origin_of, predict, read_task
from ragstone.evaluation.predictions import Origin, Prediction, PredictionFile, titles_prediction
from ragstone.model.answers import ScoredPassage
from ragstone.model.decoding import Decoding
from ragstone.model.open import ModelRequest, open_model
from ragstone.types import Passage

SEARCH = Search(Decoding(num_beams=1, max_length=6), n_docs=None, precision="fp32", batch_size=2)


@pytest.fixture
def task(tmp_path: Path) -> Task:
    (tmp_path / "q").write_text("who founded the town ?\nwhat is blue ?\nwhat is red ?\n")
    (tmp_path / "titles").write_text("town\nriver\thill\nhill\n")
    (tmp_path / "answers").write_text("otto\nriver\nhill\n")
    return read_task("retrieval", tmp_path / "q", tmp_path / "titles", "ans", tmp_path / "answers", k=2)


def test_a_task_with_both_kinds_of_gold(task: Task, tmp_path: Path) -> None:
    assert task.titles == [("town",), ("river", "hill"), ("hill",)]
    assert task.answers == [("otto",), ("river",), ("hill",)]
    e2e = read_task("e2e", tmp_path / "q", tmp_path / "answers", "ans", None, k=1)
    assert (e2e.titles, e2e.answers) == (None, task.answers)
    assert e2e.fingerprint == task.fingerprint


def test_retrieval_records_no_settings_of_the_generator(
    task: Task, tmp_path: Path, checkpoint_folder: Path, source_folder: Path
) -> None:
    """So that other beams do not make the predictions look stale."""
    model = open_model(ModelRequest(str(checkpoint_folder), passages_path=str(source_folder), n_docs=4))
    origin = origin_of(model, "rag", task, SEARCH)
    assert origin.settings == {"precision": "fp32", "n_docs": 4}
    seen: list[Prediction] = []
    file = PredictionFile(tmp_path / "out.txt")
    file.write(predict(model, task, SEARCH, seen.append), origin)
    assert [prediction.line for prediction in seen] == file.lines(3)
    assert list(measure(file, task)) == [
        "precision_at_2", "mrr_title", "recall_at_1", "recall_at_2", "recall_at_4", "mrr_answer"
    ]  # fmt: skip
    e2e = origin_of(model, "rag", Task("e2e", task.questions, task.answers, None, 1), SEARCH)
    lengths = {"num_beams": 1, "min_length": 1, "max_length": 6}
    assert e2e.settings == {"precision": "fp32", "n_docs": 4, **lengths, "torch_dtype": "float32"}
    # What another machine would take for it is something else.
    chosen = origin_of(model, "rag", task, dataclasses.replace(SEARCH, precision="auto"))
    assert chosen.settings["precision"] == ("bf16" if fast_bfloat16(best_device()) else "fp32")


@pytest.mark.parametrize("recorded", [True, False])
def test_blanks_in_titles_are_those_of_the_gold(tmp_path: Path, recorded: bool) -> None:
    """Wherever the predictions come from."""
    title = "Rue\u00a0de  Rivoli"
    (tmp_path / "q").write_text("where ?\n", encoding="utf-8")
    (tmp_path / "titles").write_text(f"{title}\n", encoding="utf-8")
    task = read_task("retrieval", tmp_path / "q", tmp_path / "titles", "ans", None, k=1)
    file = PredictionFile(tmp_path / "out.txt")
    if recorded:
        prediction = titles_prediction("where ?", (ScoredPassage(Passage(0, title, "a street"), 1.0, 1.0, 1.0),))
        origin = Origin("retrieval", task.fingerprint, "rag", "rag_token", "m", "s", {"n_docs": 1})
        file.write([prediction], origin)
    else:
        file.path.write_text(f"{title}\n", encoding="utf-8")
    assert measure(file, task)["precision_at_1"].tolist() == [1.0]


def test_a_closed_book_model_has_no_passages_to_record(task: Task, models_folder: Path) -> None:
    model = open_model(ModelRequest(str(models_folder / "generator")))
    origin = origin_of(model, "bart", Task("e2e", task.questions, task.answers, None, 1), SEARCH)
    assert "n_docs" not in origin.settings
    assert origin.source_fingerprint is None
