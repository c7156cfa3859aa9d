"""ragstone make-practice on the command line: files that finetune takes, the same for a seed, and its refusals."""

from __future__ import annotations

from pathlib import Path

import pytest

from ragstone.__main__ import main
from ragstone.data.examples import read_examples
from tests.conftest import build_source

SENTENCE = "In 18{n:02d} the engineer Ada Brook of Sumner built bridge number {n} over the river Lisk with 320 people"


@pytest.fixture(scope="module")
def long_source(tmp_path_factory: pytest.TempPathFactory, models_folder: Path) -> Path:
    folder = tmp_path_factory.mktemp("practice")
    documents = folder / "documents.tsv"
    documents.write_text("".join(f"bridge {n}\t{SENTENCE.format(n=n)}\n" for n in range(20)), encoding="utf-8")
    return build_source(documents, folder / "knowledge", models_folder / "passage_encoder")


def test_practice_is_data_for_finetune(long_source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["make-practice", "--passages_path", str(long_source), "--n_train", "50", "--n-val", "5", "--data_dir"]
    assert main([*words, str(tmp_path / "a")]) == 0
    assert main([*words, str(tmp_path / "b")]) == 0
    assert "50 questions to train on, 5 to validate on" in capsys.readouterr().out
    train, val = read_examples(tmp_path / "a", "train"), read_examples(tmp_path / "a", "val")
    assert (len(train), len(val)) == (50, 5)
    for name in ("train.source", "train.target", "val.source", "val.target"):
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()
    everything = " ".join(SENTENCE.format(n=n) for n in range(20))
    assert all(example.answer in everything for example in [*train, *val])


def test_short_passages_are_refused(source_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    target = tmp_path / "practice"
    assert main(["make-practice", "--passages_path", str(source_folder), "--data_dir", str(target)]) == 2
    error = capsys.readouterr().err
    assert "too short" in error
    assert "--max_words" in error
    assert "Traceback" not in error
    assert not target.exists()


@pytest.mark.parametrize(("flag", "value"), [("--n_train", "0"), ("--n_val", "-3")])
def test_impossible_numbers_are_refused(
    source_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], flag: str, value: str
) -> None:
    words = ["--passages_path", str(source_folder), "--data_dir", str(tmp_path / "x"), flag, value]
    assert main(["make-practice", *words]) == 2
    assert f"{flag} is {value}" in capsys.readouterr().err


def test_a_used_folder_is_refused(long_source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    assert main(["make-practice", "--passages_path", str(long_source), "--data_dir", str(tmp_path)]) == 2
    assert "not empty" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["notes.txt"]
