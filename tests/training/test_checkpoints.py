"""Which checkpoints a run keeps, and that one to resume from is always there."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from ragstone.errors import InputError
from ragstone.model.open import ModelRequest, open_model
from ragstone.training.checkpoints import STATE_NAME, CheckpointKeeper, Saved, load_state


@pytest.fixture(scope="module")
def model(models_folder: Path) -> Any:
    return open_model(ModelRequest(str(models_folder / "generator")))


def folders(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir() if not path.is_symlink())


def links(folder: Path) -> dict[str, str]:
    return {path.name: path.readlink().name for path in folder.iterdir() if path.is_symlink()}


def save_all(keeper: CheckpointKeeper, model: Any, scores: dict[int, float]) -> None:
    for step, score in scores.items():
        keeper.save(model, step, score, {"number": step})


def test_the_best_three_and_the_last_are_kept(model: Any, tmp_path: Path) -> None:
    keeper = CheckpointKeeper(tmp_path)
    save_all(keeper, model, {1: 50.0, 2: 40.0, 3: 30.0, 4: 20.0})
    assert folders(tmp_path) == ["checkpoint1", "checkpoint2", "checkpoint3", "checkpoint4"]
    assert links(tmp_path) == {"best": "checkpoint1", "last": "checkpoint4"}
    save_all(keeper, model, {5: 45.0})
    assert folders(tmp_path) == ["checkpoint1", "checkpoint2", "checkpoint5"]
    assert links(tmp_path) == {"best": "checkpoint1", "last": "checkpoint5"}
    save_all(keeper, model, {6: 10.0, 7: 60.0})
    assert folders(tmp_path) == ["checkpoint1", "checkpoint5", "checkpoint7"]
    assert links(tmp_path) == {"best": "checkpoint7", "last": "checkpoint7"}
    assert [path.parent.name for path in tmp_path.glob(f"checkpoint*/{STATE_NAME}")] == ["checkpoint7"]


def test_of_equals_the_first_is_best(model: Any, tmp_path: Path) -> None:
    keeper = CheckpointKeeper(tmp_path)
    save_all(keeper, model, dict.fromkeys(range(1, 6), 0.0))
    assert keeper.best == Saved(1, 0.0)
    assert folders(tmp_path) == ["checkpoint1", "checkpoint2", "checkpoint3", "checkpoint5"]


def test_keeping_goes_on_after_a_resume(model: Any, tmp_path: Path) -> None:
    """What had been removed when the state was written must not be looked for again."""
    save_all(CheckpointKeeper(tmp_path), model, {1: 50.0, 2: 40.0, 3: 30.0, 4: 20.0, 5: 25.0})
    state = load_state(tmp_path)
    assert state["number"] == 5
    keeper = CheckpointKeeper(tmp_path, [Saved(*kept) for kept in state["kept"]])
    save_all(keeper, model, {6: 60.0, 7: 70.0})
    assert folders(tmp_path) == ["checkpoint1", "checkpoint6", "checkpoint7"]
    assert links(tmp_path) == {"best": "checkpoint7", "last": "checkpoint7"}


class Stopped(Exception):
    pass


class StoppingModel:
    """Stops in the middle of being saved."""

    def save(self, folder: Path) -> None:
        (folder / "config.json").write_text("{", encoding="utf-8")
        raise Stopped


def test_a_save_that_is_stopped_leaves_the_one_before(model: Any, tmp_path: Path) -> None:
    keeper = CheckpointKeeper(tmp_path)
    save_all(keeper, model, {1: 10.0})
    stopping: Any = StoppingModel()
    with pytest.raises(Stopped):
        keeper.save(stopping, 2, 20.0, {"number": 2})
    assert folders(tmp_path) == ["checkpoint1"]
    assert load_state(tmp_path)["number"] == 1


def test_what_a_stopped_run_left_is_tidied_up(model: Any, tmp_path: Path) -> None:
    """Stopped after a checkpoint came to its place and before the links followed."""
    save_all(CheckpointKeeper(tmp_path), model, {1: 10.0, 2: 5.0})
    (tmp_path / "checkpoint3").mkdir()
    (tmp_path / "best").unlink()
    keeper = CheckpointKeeper(tmp_path, [Saved(*kept) for kept in load_state(tmp_path)["kept"]])
    assert folders(tmp_path) == ["checkpoint1", "checkpoint2"]
    assert links(tmp_path) == {"best": "checkpoint1", "last": "checkpoint2"}
    save_all(keeper, model, {3: 30.0})
    assert links(tmp_path) == {"best": "checkpoint3", "last": "checkpoint3"}


def test_the_state_is_read_without_pickled_code(model: Any, tmp_path: Path) -> None:
    save_all(CheckpointKeeper(tmp_path), model, {1: 10.0})
    torch.save({"number": StoppingModel()}, tmp_path / "last" / STATE_NAME)
    with pytest.raises(InputError, match=f"{STATE_NAME} is damaged"):
        load_state(tmp_path)
    (tmp_path / "last" / STATE_NAME).write_bytes(b"nonsense")
    with pytest.raises(InputError, match="start anew in another folder"):
        load_state(tmp_path)


def test_nothing_to_resume_from(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="holds no checkpoint to resume from"):
        load_state(tmp_path)
