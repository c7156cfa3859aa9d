"""finetune, eval and ask with a knowledge source that cannot be theirs, and with one of few passages."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from ragstone.__main__ import main
from ragstone.index.vector_index import build_index
from ragstone.knowledge.source import INDEX_NAME, PASSAGES_NAME
from ragstone.knowledge.store import PassageWriter
from tests.commands.conftest import refused
from tests.conftest import DOCUMENTS

NARROW = 8
"""Dimensions of vectors that are none of the checkpoint's, which have 16."""


@pytest.fixture(params=["finetune", "eval", "ask"])
def command(
    request: pytest.FixtureRequest, tmp_path: Path, pairs_folder: Path, checkpoint_folder: Path, source_folder: Path
) -> list[str]:
    """Each command with flags that can be used; later ones win."""
    evaluated = [f"--evaluation_set={pairs_folder / 'test.source'}", f"--gold_data_path={pairs_folder / 'test.target'}"]
    flags = {
        "finetune": [f"--data_dir={pairs_folder}", f"--output_dir={tmp_path / 'out'}", "--max_steps=1"],
        "eval": [*evaluated, "--gold_data_mode=ans", f"--predictions_path={tmp_path / 'out'}", "--max_length=8"],
        "ask": ["--question=who founded the town ?", "--max_length=8"],
    }[request.param]
    model = [f"--model_name_or_path={checkpoint_folder}", f"--passages_path={source_folder}", "--n_docs=3"]
    return [request.param, *model, "--num_beams=1" if request.param != "finetune" else "--num_beams=2", *flags]


def narrow_source(folder: Path) -> None:
    """A source as large as the right one, of shorter vectors."""
    vectors = np.eye(len(DOCUMENTS), NARROW, dtype=np.float32)
    with PassageWriter(folder / PASSAGES_NAME, NARROW) as writer:
        writer.write([title for title, _ in DOCUMENTS], [text for _, text in DOCUMENTS], vectors)
    build_index(lambda: iter([vectors]), len(DOCUMENTS), NARROW, "Flat", folder / INDEX_NAME)


def narrow_index(folder: Path, command: list[str]) -> list[str]:
    narrow_source(folder / "narrow")
    return [f"--index_path={folder / 'narrow' / INDEX_NAME}"]


def narrow_vectors(folder: Path, command: list[str]) -> list[str]:
    narrow_source(folder / "narrow")
    return [f"--passages_path={folder / 'narrow'}"]


def folder_as_index(folder: Path, command: list[str]) -> list[str]:
    (folder / "index.faiss").mkdir()
    return [f"--index_path={folder / 'index.faiss'}"]


def other_passage_encoder(folder: Path, command: list[str]) -> list[str]:
    """A checkpoint that knows its passage encoder, which is as wide as the source's."""
    own = Path(next(word for word in command if word.startswith("--model_name_or_path=")).partition("=")[2])
    shutil.copytree(own, folder / "partnered")
    config = json.loads((own / "config.json").read_text(encoding="utf-8"))
    config["ragstone"]["passage_encoder"] = {"fingerprint": "0" * 32}
    (folder / "partnered" / "config.json").write_text(json.dumps(config), encoding="utf-8")
    return [f"--model_name_or_path={folder / 'partnered'}"]


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (narrow_index, f"has {NARROW} dimensions, but the vectors in "),
        (narrow_vectors, "makes question vectors of 16 dimensions, but "),
        (folder_as_index, "index.faiss"),
        (other_passage_encoder, "was built with the passage encoder"),
    ],
)
def test_a_source_that_cannot_be_the_models_is_refused(
    command: list[str],
    spoil: Callable[[Path, list[str]], list[str]],
    message: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    changes = spoil(tmp_path, command)
    before = sorted(tmp_path.rglob("*"))
    assert message in refused(capsys, [*command, *changes])
    assert sorted(tmp_path.rglob("*")) == before


def test_more_passages_than_there_are(command: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*command, "--n_docs=50"]) == 0
    assert "nan" not in capsys.readouterr().out


@pytest.mark.parametrize("command", ["finetune", "eval"], indirect=True)
def test_a_question_file_that_cannot_be_read(
    tmp_path: Path, pairs_folder: Path, command: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    """A folder in its place."""
    shutil.copytree(pairs_folder, tmp_path / "data")
    for name in ("train.source", "test.source"):
        (tmp_path / "data" / name).unlink()
        (tmp_path / "data" / name).mkdir()
    changes = {
        "finetune": [f"--data_dir={tmp_path / 'data'}"],
        "eval": [f"--evaluation_set={tmp_path / 'data' / 'test.source'}"],
    }[command[0]]
    assert ".source cannot be read: Is a directory; give a readable file." in refused(capsys, [*command, *changes])
    assert not (tmp_path / "out").exists()
