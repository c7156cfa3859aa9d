"""The dummy source: equal each time, of any dimension, and what models with use_dummy_dataset search."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from ragstone.__main__ import main
from ragstone.knowledge.dummy import PASSAGES, write_dummy_source
from ragstone.knowledge.source import KnowledgeSource
from ragstone.knowledge.verify import verify_source
from ragstone.model.open import ModelRequest, open_model
from tests.commands.conftest import refused

NOTE = "note: searching a dummy source of 40 passages with made-up vectors (use_dummy_dataset)"


@pytest.mark.parametrize("dimension", [3, 768])
def test_it_is_a_sound_source_and_equal_each_time(tmp_path: Path, dimension: int) -> None:
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        write_dummy_source(tmp_path / name, dimension)
    report = verify_source(tmp_path / "one")
    assert (report.passages, report.dimension, report.without_text) == (len(PASSAGES), dimension, 0)
    one, two = KnowledgeSource(tmp_path / "one"), KnowledgeSource(tmp_path / "two")
    assert one.fingerprint() == two.fingerprint()
    vectors = one.store.vectors(np.arange(len(PASSAGES)))
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, rtol=1e-5)
    assert len(np.unique(vectors, axis=0)) == len({title for title, _ in PASSAGES}) == 40


@pytest.fixture
def flags(tmp_path: Path, checkpoint_folder: Path) -> list[str]:
    """A checkpoint whose config says use_dummy_dataset, as transformers' RagConfig has it."""
    folder = tmp_path / "rag"
    shutil.copytree(checkpoint_folder, folder)
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    (folder / "config.json").write_text(json.dumps({**config, "use_dummy_dataset": True}), encoding="utf-8")
    return ["ask", f"--model_name_or_path={folder}", "--question", "who ?", "--json", "--max_length=4"]


def test_a_checkpoint_that_asks_for_it_works_at_once(flags: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(flags) == 0
    out, err = capsys.readouterr()
    assert err.startswith(NOTE) and err.count("\n") == 1
    passages = json.loads(out)["passages"]
    assert len(passages) == 5
    assert all((found["title"], found["text"]) in PASSAGES for found in passages)


def test_a_source_that_is_given_goes_before_it(
    flags: list[str], source_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([*flags, f"--passages_path={source_folder}"]) == 0
    out, err = capsys.readouterr()
    assert err == "" and json.loads(out)["passages"][0]["title"] not in dict(PASSAGES)
    message = refused(capsys, [*flags, f"--passages_path={source_folder}", "--use_dummy_dataset"])
    assert f"--use_dummy_dataset is a source itself; leave it or --passages_path {source_folder} out." in message


def test_the_flag_asks_for_it_and_a_run_goes_on(
    tmp_path: Path, checkpoint_folder: Path, pairs_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Trained, saved, resumed and asked over it: it is the same source each time."""
    train = ["finetune", f"--data_dir={pairs_folder}", f"--output_dir={tmp_path / 'run'}", "--gpus=0", "--num_beams=1"]
    train += [f"--model_name_or_path={checkpoint_folder}", "--use_dummy_dataset", "--n_docs=2", "--train_batch_size=5"]
    assert main([*train, "--num_train_epochs=1"]) == 0
    assert NOTE in capsys.readouterr().err
    assert main([*train, "--num_train_epochs=2", "--resume"]) == 0
    model = open_model(ModelRequest(str(tmp_path / "run" / "best")))
    assert model.retrieve(["who ?"])[0][0].passage.title in dict(PASSAGES)
    config = json.loads((tmp_path / "run" / "best" / "config.json").read_text(encoding="utf-8"))
    assert config["use_dummy_dataset"] is True and config.get("passages_path") is None
