"""Retrieval on rank 0 for all, with real processes: every rank gets what it would find by itself."""

from __future__ import annotations

import dataclasses
import time
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
import torch

from ragstone.errors import InputError, LostError
from ragstone.knowledge.source import KnowledgeSource
from ragstone.processes.group import ProcessGroup, joined
from ragstone.processes.launch import launch
from ragstone.retrieval.backend import InFirstProcess
from ragstone.retrieval.local import LocalRetriever
from ragstone.retrieval.location import SourceLocation
from ragstone.types import FloatArray, Retrieved
from tests.retrieval.conftest import write_published, write_source

MIB = 2**20
CASES = [
    # Questions of ranks 0, 1 and 2, and the passages that each wants.
    ((4, 4, 4), (3, 3, 3)),
    ((1, 5, 2), (3, 3, 3)),
    ((0, 2, 1), (2, 2, 2)),
    ((3, 0, 0), (5, 5, 5)),
    ((0, 0, 0), (1, 1, 1)),
    ((2, 2, 2), (1, 4, 2)),
    ((1, 1, 1), (9, 9, 9)),
]


def asked(dimension: int, case: int, rank: int) -> FloatArray:
    count = CASES[case][0][rank]
    return np.random.default_rng(10 * case + rank).normal(size=(count, dimension)).astype(np.float32)


def as_plain(found: Retrieved) -> dict[str, Any]:
    passages = [[[p.id, p.title, p.text] for p in row] for row in found.passages]
    shape = list(found.vectors.shape)
    return {"ids": found.ids.tolist(), "vectors": found.vectors.tolist(), "shape": shape, "passages": passages}


def ask_all(folder: str) -> Any:
    """What each process does: all the cases, one after the other."""
    with joined(torch.device("cpu"), 60) as processes:
        assert isinstance(processes, ProcessGroup)
        rank = processes.place.rank
        # The others never look for it.
        info, retriever = InFirstProcess(processes).open(SourceLocation(folder if rank == 0 else "nowhere"))
        found = [
            as_plain(retriever.retrieve(asked(info.dimension, case, rank), n_docs[rank]))
            for case, (_, n_docs) in enumerate(CASES)
        ]
        retriever.close()
        return processes.gather([dataclasses.asdict(info), found])


def hang(task: tuple[str, int]) -> None:
    """What each process does: some retrievals, and then one hangs."""
    folder, hanging = task
    with joined(torch.device("cpu"), 4) as processes:
        assert isinstance(processes, ProcessGroup)
        info, retriever = InFirstProcess(processes).open(SourceLocation(folder))
        for case in range(3):
            retriever.retrieve(asked(info.dimension, case, processes.place.rank), 2)
        if processes.place.rank == hanging:
            time.sleep(60)
        retriever.retrieve(asked(info.dimension, 0, processes.place.rank), 2)


def open_nothing(folder: str) -> None:
    with joined(torch.device("cpu"), 60) as processes:
        assert isinstance(processes, ProcessGroup)
        InFirstProcess(processes).open(SourceLocation(folder))


def look_for_a_name(task: tuple[str, str]) -> Any:
    """What each process does, before and after the first one has something in the hub's cache; each one's refusal."""
    from huggingface_hub import constants

    # Every process of the other tests would import transformers, too.
    from ragstone.model.open import ModelRequest, refuse_unsearchable

    checkpoint, cache = task
    with joined(torch.device("cpu"), 60) as processes:
        assert isinstance(processes, ProcessGroup)
        constants.HF_HUB_CACHE = cache if processes.place.is_first else "/nowhere"
        request = ModelRequest(checkpoint, index_name="compressed", retrieval=InFirstProcess(processes))
        with pytest.raises(InputError) as refused:
            refuse_unsearchable(request)
        processes.on_first(lambda: str(write_published(Path(cache))))
        refuse_unsearchable(request)
        return processes.gather(str(refused.value))


def search_and_weigh(folder: str) -> Any:
    """Memory of each process in bytes, before it opens the source, and after many searches through all of it."""
    with joined(torch.device("cpu"), 60) as processes:
        assert isinstance(processes, ProcessGroup)
        retriever: Any = None
        weights = []
        for _ in range(2):
            if retriever is None:
                # What a first message and a first search take belongs to no index.
                processes.gather(0)
            weights.append(psutil.Process().memory_info().rss)
            if retriever is None:
                info, retriever = InFirstProcess(processes).open(SourceLocation(folder))
            for seed in range(20):
                vectors = np.random.default_rng(seed).normal(size=(8, info.dimension)).astype(np.float32)
                retriever.retrieve(vectors, 5)
        weights.append(psutil.Process().memory_info().rss)
        return processes.gather(weights)


def test_every_rank_gets_what_it_would_find_itself(source_folder: Path) -> None:
    results = launch(ask_all, str(source_folder), 3)
    source = KnowledgeSource(source_folder)
    alone = LocalRetriever(source)
    for rank, (info, found) in enumerate(results):
        assert info == dataclasses.asdict(source.info())
        for case, (_, n_docs) in enumerate(CASES):
            expected = as_plain(alone.retrieve(asked(source.dimension, case, rank), n_docs[rank]))
            assert found[case] == expected, (rank, case)


@pytest.mark.slow
@pytest.mark.parametrize("hanging", [0, 2])
def test_who_hangs_between_retrievals_is_named(source_folder: Path, hanging: int) -> None:
    """And nobody else, though those that wait have come to different exchanges."""
    with pytest.raises(
        LostError, match=rf"^Rank \d waited in vain \(time-out 4 s\): rank {hanging} is gone or stopped"
    ):
        launch(hang, (str(source_folder), hanging), 3)


@pytest.mark.slow
def test_what_is_refused_is_never_told_as_a_crash(tmp_path: Path) -> None:
    """Threads that were left behind took a process down while it ended, one time in three."""
    for _ in range(12):
        with pytest.raises(InputError, match=r"^There is no knowledge source"):
            launch(open_nothing, str(tmp_path / "nowhere"), 2)


def test_no_source_is_said_by_all(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=f"^There is no knowledge source {tmp_path / 'nowhere'}; make one"):
        launch(open_nothing, str(tmp_path / "nowhere"), 2)


def test_the_memory_of_the_others_does_not_grow_with_the_index(tmp_path: Path) -> None:
    """A source of 160 MiB: the first process maps and reads its index, the second holds nothing of it."""
    folder = write_source(tmp_path / "source", 20_000, 1024)
    size = KnowledgeSource(folder).index_path.stat().st_size
    first, second = launch(search_and_weigh, str(folder), 2)
    assert size > 75 * MIB
    assert first[-1] - first[0] > 0.9 * size
    assert second[-1] - second[0] < 15 * MIB


def test_a_named_index_is_needed_by_the_first_process_alone(tmp_path: Path, checkpoint_folder: Path) -> None:
    first, second = launch(look_for_a_name, (str(checkpoint_folder), str(tmp_path)), 2)
    assert first == second
    assert first.startswith("The index 'compressed' of wiki_dpr is not in the")
