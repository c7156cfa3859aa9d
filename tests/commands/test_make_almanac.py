"""ragstone make-almanac: files that the other commands take."""

from __future__ import annotations

from pathlib import Path

import pytest

from ragstone.__main__ import main
from ragstone.data.examples import read_examples
from tests.commands.conftest import refused


def test_files_that_belong_together(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "almanac"
    assert main(["make-almanac", "--output_dir", str(folder), "--entities", "600", "--wording", "other"]) == 0
    shown = capsys.readouterr().out
    assert "600 articles" in shown and "1,020 questions to train on, 600 to test with" in shown
    examples = read_examples(folder / "data", "test")
    assert len(examples) == 600
    assert len(read_examples(folder / "data", "train")) == 1020
    gold = (folder / "data" / "test.gold_qa.tsv").read_text(encoding="utf-8").splitlines()
    assert gold == [f"{example.question}\t{[example.answer]!r}" for example in examples]
    assert (folder / "almanac.settings.yaml").is_file()
    assert len((folder / "almanac_changed.tsv").read_text(encoding="utf-8").splitlines()) == 600


def test_too_few_entities_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    message = refused(capsys, ["make-almanac", "--output_dir", str(tmp_path / "almanac"), "--entities", "519"])
    assert "--entities is 519, but must be at least 520." in message
    assert not (tmp_path / "almanac").exists()
