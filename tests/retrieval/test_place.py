"""A source that each process opens for itself: real processes."""

from __future__ import annotations

from pathlib import Path

import torch

from ragstone.errors import InputError
from ragstone.processes.group import joined
from ragstone.processes.launch import launch
from ragstone.retrieval.location import SourceLocation
from ragstone.retrieval.place import InEveryProcess
from tests.retrieval.conftest import write_source


def open_two(folders: tuple[Path, Path]) -> tuple[int, str]:
    """What each process does: how many passages both find in the first source; what is said where each has another."""
    with joined(torch.device("cpu"), 60) as processes:
        place = InEveryProcess(processes=processes)
        info, retriever = place.open(SourceLocation(str(folders[0])))
        passages = [*processes.gather(info.passages), *processes.gather(len(retriever.source))]
        assert len(set(passages)) == 1
        try:
            place.open(SourceLocation(str(folders[processes.place.rank])))
        except InputError as error:
            sentence = str(error)
        assert len(processes.gather(sentence)) == 2
    return info.passages, sentence


def test_all_must_have_the_same_source(tmp_path: Path) -> None:
    folders = write_source(tmp_path / "first", 40, 4), write_source(tmp_path / "second", 41, 4)
    assert launch(open_two, folders, 2) == (
        40,
        f"The knowledge source {folders[0]} is not the same for rank 1 as for rank 0; put one version of it on all "
        "hosts.",
    )
