"""A source that each process opens for itself: real processes."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from ragstone.errors import InputError
from ragstone.processes.group import joined
from ragstone.processes.launch import launch
from ragstone.retrieval.choice import RetrievalSettings, retrieval_backend
from ragstone.retrieval.location import SourceLocation
from tests.retrieval.conftest import write_source


def open_each(folders: tuple[Path, Path, Path]) -> tuple[int, list[list[str]]]:
    """What each process does: how many passages both find in the first source; what each says where they differ."""
    with joined(torch.device("cpu"), 60) as processes:
        place = retrieval_backend(RetrievalSettings(), processes, 60).for_words()
        info, retriever = place.open(SourceLocation(str(folders[0])))
        passages = [*processes.gather(info.passages), *processes.gather(len(retriever.source))]
        assert len(set(passages)) == 1
        said = []
        for other in folders[1:]:
            with pytest.raises(InputError) as refused:
                place.open(SourceLocation(str((folders[0], other)[processes.place.rank])))
            said.append(processes.gather(str(refused.value)))
    return info.passages, said


def test_all_must_have_the_same_source(tmp_path: Path) -> None:
    folders = write_source(tmp_path / "first", 40, 4), write_source(tmp_path / "second", 41, 4), tmp_path / "none"
    passages, (differ, missing) = launch(open_each, folders, 2)
    assert passages == 40
    assert differ == [
        f"The knowledge source {folder} is not the same for rank 1 as for rank 0; put one version of it on all hosts."
        for folder in folders[:2]
    ]
    assert missing == [f"Rank 1 cannot open the knowledge source: {missing[1]}", missing[1]]
    assert missing[1].startswith(f"There is no knowledge source {folders[2]};")
