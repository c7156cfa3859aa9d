"""Processes that were given different things, as on several hosts: real ones, on one."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch

from ragstone.data.examples import Split
from ragstone.errors import InputError
from ragstone.processes.group import joined
from ragstone.processes.launch import launch
from ragstone.processes.processes import OneProcess, Processes
from ragstone.training.agreement import refuse_unlike_examples, refuse_unlike_flags, refuse_unseen_folder
from ragstone.types import Example

ALIKE = {"learning_rate": 0.1, "seed": 42}
DATA: dict[Split, list[Example]] = {"train": [Example("q", "a"), Example("r", "b")], "test": [Example("s", "c")]}


def compare(folder: Path) -> list[str | None]:
    """What each process does, the second one with other things; what was said to the first."""
    with joined(torch.device("cpu"), 60) as processes:
        other = not processes.place.is_first
        flags = ALIKE | {"learning_rate": 0.2, "seed": 1} if other else ALIKE
        fewer = {**DATA, "train": DATA["train"][:1]} if other else DATA
        mine = folder / ("second" if other else "first")
        mine.mkdir()
        return [
            said(lambda: refuse_unlike_flags(ALIKE, processes), processes),
            said(lambda: refuse_unlike_examples(DATA, processes), processes),
            said(lambda: refuse_unlike_flags(flags, processes), processes),
            said(lambda: refuse_unlike_examples(fewer, processes), processes),
            said(lambda: refuse_unseen_folder(folder, processes), processes),
            said(lambda: refuse_unseen_folder(mine, processes), processes),
            said(lambda: refuse_unseen_folder(folder / "none", processes), processes),
        ]


def said(check: Callable[[], None], processes: Processes) -> str | None:
    """The sentence with which `check` refuses, for all if for one."""
    try:
        check()
        sentence = None
    except InputError as error:
        sentence = str(error)
    assert len({text is None for text in processes.gather(sentence)}) == 1
    return sentence


def test_what_is_not_alike_is_refused_by_all(tmp_path: Path) -> None:
    alike, alike_data, flags, data, shared, apart, none = launch(compare, tmp_path, 2)
    assert (alike, alike_data) == (None, None)
    assert flags == (
        "Rank 1 was started differently from rank 0: --learning_rate (0.2 there, 0.1 for rank 0), --seed (1 there, 42 "
        "for rank 0); start all processes with the same flags and the same data."
    )
    assert data is not None and data.startswith("Rank 1 was started differently from rank 0: the examples of train;")
    assert shared is None
    # Each has a folder, but not the same.
    assert apart is not None and "is not there for rank 1, or is another folder; give one on storage" in apart
    assert none is not None and none.startswith(f"{tmp_path / 'none'}/.seen-by-all-")
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["first", "second"]


def test_a_process_alone_agrees_with_itself(tmp_path: Path) -> None:
    refuse_unlike_flags(ALIKE, OneProcess())
    refuse_unlike_examples(DATA, OneProcess())
    refuse_unseen_folder(tmp_path, OneProcess())
    assert not list(tmp_path.iterdir())
