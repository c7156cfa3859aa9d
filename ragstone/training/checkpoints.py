"""The checkpoints of a run: the best three by exact match and the last, which also holds what resuming needs."""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from ragstone.errors import InputError
from ragstone.model.model import Model

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

    def __init__(self, folder: Path, kept: list[Saved] | None = None) -> None:
        self._folder = folder
        self.kept = kept or []

    @property
    def best(self) -> Saved:
        """The highest score; the earliest of equals."""
        return max(self.kept, key=lambda saved: (saved.score, -saved.step))

    def save(self, model: Model, step: int, score: float, state: dict[str, Any]) -> None:
        """Write checkpoint{step} with the state to resume from; `best` and `last` are links to checkpoints."""
        saved = Saved(step, score)
        target = self._folder / saved.name
        workshop = self._folder / f".{saved.name}"
        shutil.rmtree(workshop, ignore_errors=True)
        workshop.mkdir()
        model.save(workshop)
        self.kept = [*[other for other in self.kept if other.step != step], saved]
        state = {**state, "kept": [(other.step, other.score) for other in self.kept]}
        torch.save(state, workshop / STATE_NAME)
        shutil.rmtree(target, ignore_errors=True)
        workshop.rename(target)
        self._link("last", saved.name)
        self._link("best", self.best.name)
        self._prune(saved)

    def _prune(self, last: Saved) -> None:
        ranked = sorted(self.kept, key=lambda saved: (-saved.score, saved.step))
        for saved in self.kept:
            if saved != last:
                (self._folder / saved.name / STATE_NAME).unlink(missing_ok=True)
        for saved in ranked[KEPT:]:
            if saved != last:
                shutil.rmtree(self._folder / saved.name)
        self.kept = [saved for saved in self.kept if saved in ranked[:KEPT] or saved == last]

    def _link(self, name: str, target: str) -> None:
        """Point a link elsewhere in one step, so that there is always one."""
        new = self._folder / f".{name}"
        new.unlink(missing_ok=True)
        new.symlink_to(target)
        new.replace(self._folder / name)


def load_state(folder: Path) -> dict[str, Any]:
    """The training state of the last checkpoint of a run's folder.

    Raises:
        InputError: there is none.
    """
    path = folder / "last" / STATE_NAME
    if not path.is_file():
        raise InputError(f"{folder} holds no checkpoint to resume from; leave --resume out and give a new folder.")
    state: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
    return state
