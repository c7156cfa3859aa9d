"""ragstone demo: the floors that it promises, and its refusals. The whole demo is a slow test."""

from __future__ import annotations

import json
import shlex
from pathlib import Path

import pytest
import yaml

from ragstone.__main__ import main
from tests.commands.conftest import refused


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_the_demo_reaches_its_floors(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "my demo"
    assert main(["demo", "--output_dir", str(folder)]) == 0
    assert yaml.safe_load((folder / "settings.yaml").read_text())["output_dir"] == str(folder)
    metrics = json.loads((folder / "metrics.json").read_text())
    assert list(metrics) == ["test_em", "test_f1", "precision_at_1", "swapped_em", "stale_em", "seconds"]
    assert metrics["test_em"] >= 90
    assert metrics["test_f1"] >= metrics["test_em"]
    assert metrics["precision_at_1"] >= 95
    assert metrics["swapped_em"] >= 90
    assert metrics["stale_em"] <= 2
    shown = capsys.readouterr().out
    for name in (
        "make-almanac",
        "train-retriever",
        "build-knowledge",
        "new-generator",
        "consolidate",
        "finetune",
        "eval",
        "ask",
    ):
        assert f"$ ragstone {name} " in shown
    # Nothing is trained after the facts are changed, and those who answer are the model that was trained.
    _, title, after_the_swap = shown.partition("== Other facts: the knowledge source is swapped")
    assert title and "$ ragstone eval" in after_the_swap and "$ ragstone finetune" not in after_the_swap
    weights = folder / "run" / "best" / "model.safetensors"
    assert weights.stat().st_mtime < (folder / "test.predictions").stat().st_mtime
    # No fact of an entity that is asked about was in training: not as a question, nor as a passage of the retriever's.
    tested = set((folder / "data" / "test.pages").read_text().splitlines())
    assert len(tested) > 100
    trained = (folder / "data" / "train.source").read_text()
    assert not [name for name in tested if name in trained]
    entries = json.loads((folder / "retriever.json").read_text())
    titles = {context["title"] for entry in entries for context in entry["positive_ctxs"] + entry["hard_negative_ctxs"]}
    assert len(titles) > 1000 and tested.isdisjoint(titles)
    assert shown.count("posterior") >= 4
    # An echoed line can be repeated as it stands, though the folder's name has a blank.
    line = next(line for line in shown.splitlines() if line.startswith("$ ragstone ask "))
    capsys.readouterr()
    assert main(shlex.split(line)[2:]) == 0
    assert capsys.readouterr().out.strip() in shown


def test_a_used_folder_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    assert main(["demo", "--output_dir", str(tmp_path)]) == 2
    assert "not empty" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["notes.txt"]


@pytest.mark.parametrize(
    ("flag", "message"),
    [
        ("--entities=100", "--entities is 100, but must be at least 520"),
        ("--max_steps=1", "--max_steps is 1, but must be at least 2"),
        ("--seed=-1", "--seed is -1, but must be at least 0 and below 4294967296"),
        ("--seed=4294967296", "--seed is 4294967296, but must be"),
    ],
)
def test_impossible_numbers_are_refused(
    flag: str, message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert message in refused(capsys, ["demo", "--output_dir", str(tmp_path / "demo"), flag])
    assert not (tmp_path / "demo").exists()
