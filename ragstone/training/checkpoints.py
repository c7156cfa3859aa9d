"""The checkpoints of a run: the best three by exact match and the last, which also holds what resuming needs."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from ragstone.errors import InputError
from ragstone.model.model import Model
from ragstone.progress import activity

KEPT = 3
STATE_NAME = "training_state.pt"


@dataclass(frozen=True)
class Saved:
    """A checkpoint that is kept."""

    step: int
    score: float

    @property
    def name(self) -> str:
        return f"checkpoint{self.step}"


class CheckpointKeeper:
    """Writes checkpoints into a folder and removes those that are neither good nor new."""

    def __init__(self, folder: Path, kept: Sequence[Saved] = (), writes: bool = True) -> None:
        """`kept` are the checkpoints that a run which goes on has, the last one last.

        With several processes, one writes; the others only remember what is kept.
        """
        self._folder = folder
        self._writes = writes
        self.kept = list(kept)
        if self.kept and writes:
            self._tidy()

    @property
    def best(self) -> Saved:
        """The highest score; the earliest of equals."""
        return self._ranked()[0]

    def save(self, model: Model, step: int, score: float, state: dict[str, Any]) -> None:
        """Write checkpoint{step} with the state to resume from; `best` and `last` are links to checkpoints.

        Whenever this is interrupted, `last` is a whole checkpoint that resuming can start from.
        """
        saved = Saved(step, score)
        self.kept.append(saved)
        self.kept = [other for other in self.kept if other == saved or other in self._ranked()[:KEPT]]
        if not self._writes:
            return
        with activity(f"Saving {saved.name}"):
            self._write(model, saved, state)
        self._tidy()

    def _write(self, model: Model, saved: Saved, state: dict[str, Any]) -> None:
        workshop = self._folder / f".{saved.name}"
        shutil.rmtree(workshop, ignore_errors=True)
        try:
            workshop.mkdir()
            model.save(workshop)
            torch.save({**state, "kept": [(other.step, other.score) for other in self.kept]}, workshop / STATE_NAME)
            # One of this name is left from a run that was stopped before it became the last.
            shutil.rmtree(self._folder / saved.name, ignore_errors=True)
            workshop.rename(self._folder / saved.name)
        finally:
            shutil.rmtree(workshop, ignore_errors=True)

    def _tidy(self) -> None:
        """Make links and folders agree with what is kept."""
        last = self.kept[-1]
        self._link("last", last.name)
        self._link("best", self.best.name)
        names = {saved.name for saved in self.kept}
        for path in self._folder.glob("checkpoint*"):
            if path.name not in names:
                shutil.rmtree(path)
            elif path.name != last.name:
                (path / STATE_NAME).unlink(missing_ok=True)

    def _ranked(self) -> list[Saved]:
        return sorted(self.kept, key=lambda saved: (-saved.score, saved.step))

    def _link(self, name: str, target: str) -> None:
        """Point a link elsewhere in one step, so that there is always one."""
        new = self._folder / f".{name}"
        new.unlink(missing_ok=True)
        new.symlink_to(target)
        new.replace(self._folder / name)


def load_state(folder: Path) -> dict[str, Any]:
    """The training state of the last checkpoint of a run's folder.

    Raises:
        InputError: there is none, or it is damaged.
    """
    path = folder / "last" / STATE_NAME
    if not path.is_file():
        raise InputError(f"{folder} holds no checkpoint to resume from; leave --resume out and give a new folder.")
    try:
        state: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # a damaged archive raises whatever its first broken part does
        raise InputError(f"{path} is damaged, so the run cannot be resumed; start anew in another folder.") from error
    return state
