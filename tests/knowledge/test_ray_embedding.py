"""Embedding on a Ray cluster, held against the build in one process; workers are real, and really killed."""

from __future__ import annotations

import dataclasses
import hashlib
import os
import signal
import socket
import sys
import threading
import time
import uuid
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pytest
import torch

from ragstone.encoders.load import load_encoder
from ragstone.encoders.text_encoder import TextEncoder, TokenLists
from ragstone.errors import InputError
from ragstone.knowledge.build import BuildPlan, build_knowledge_source
from ragstone.knowledge.corpus import read_corpus
from ragstone.knowledge.embedding import embed_groups
from ragstone.knowledge.parts import open_parts
from ragstone.knowledge.ray_embedding import EmbedPart, RayEmbedding, WorkerLayout
from ragstone.knowledge.source import PASSAGES_NAME, KnowledgeSource
from ragstone.types import FloatArray
from tests.conftest import WORDS

OWN_WARNING = "`use_.*` is deprecated"
"""Ray Data warns of settings of its own, whenever its settings are made."""
pytestmark = [
    pytest.mark.filterwarnings(f"ignore:{OWN_WARNING}:DeprecationWarning"),
    pytest.mark.xdist_group("ray"),
]

PER_PART = 8
PLAN = BuildPlan("flat", max_words=10, batch_size=4, precision="fp32")


@dataclasses.dataclass(frozen=True)
class Mark:
    """That a process has begun to embed something."""

    host: str
    process: int
    threads: int
    what: str


class MarkingEncoder(TextEncoder):
    """Leaves a mark for each call, then takes its time."""

    folder: Path
    pause = 0.0
    waits_for = 1

    def embed_tokens(self, tokens: TokenLists, **options: Any) -> FloatArray:
        import ray

        host = ray.get_runtime_context().get_node_id()
        what = hashlib.sha256(repr(tokens["input_ids"]).encode()).hexdigest()[:16]
        name = f"{host}-{os.getpid()}-{torch.get_num_threads()}-{what}-{uuid.uuid4().hex}"
        (self.folder / f"{time.monotonic_ns():020d}-{name}").touch()
        time.sleep(self.pause)
        wait_until(lambda: len({mark.process for mark in marks(self.folder)}) >= self.waits_for)
        return super().embed_tokens(tokens, **options)


def marks(folder: Path) -> list[Mark]:
    """All marks, the oldest first."""
    names = [path.name.split("-") for path in sorted(folder.iterdir())]
    return [Mark(host, int(process), int(threads), what) for _, host, process, threads, what, _ in names]


def wait_until(condition: Callable[[], bool], seconds: float = 120) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.01)


@pytest.fixture(scope="module")
def cluster() -> Iterator[None]:
    """A cluster of two hosts, as Ray sees it, each of which believes to have cores for one worker."""
    import ray
    from ray import cloudpickle
    from ray.cluster_utils import Cluster

    # Workers do not find the modules of the tests.
    cloudpickle.register_pickle_by_value(sys.modules[__name__])
    hosts = Cluster(initialize_head=True, head_node_args={"num_cpus": 8, "include_dashboard": False})
    hosts.add_node(num_cpus=8)
    ray.init(address=hosts.address, logging_level="ERROR", log_to_driver=False)
    yield
    ray.shutdown()
    hosts.shutdown()
    cloudpickle.unregister_pickle_by_value(sys.modules[__name__])


@pytest.fixture(scope="module")
def documents(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Forty documents of up to thirty words."""
    rng = np.random.default_rng(0)
    lines = [f"{rng.choice(WORDS)} {i}\t{' '.join(rng.choice(WORDS, rng.integers(5, 31)))}\n" for i in range(40)]
    path = tmp_path_factory.mktemp("documents") / "documents.tsv"
    path.write_text("".join(lines), encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def plain(models_folder: Path, documents: Path, tmp_path_factory: pytest.TempPathFactory) -> KnowledgeSource:
    """What the build in one process makes of the documents."""
    folder = tmp_path_factory.mktemp("plain")
    build_knowledge_source([documents], load_encoder(str(models_folder / "passage_encoder"), "passage"), folder, PLAN)
    return KnowledgeSource(folder)


@pytest.fixture(scope="module")
def encoder(models_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> MarkingEncoder:
    loaded = load_encoder(str(models_folder / "passage_encoder"), "passage")
    encoder = MarkingEncoder(loaded.model, loaded.tokenizer, loaded.settings, loaded.name)
    encoder.folder = tmp_path_factory.mktemp("marks")
    return encoder


@dataclasses.dataclass(frozen=True)
class Run:
    """A build on the cluster, in the midst of which a worker was killed."""

    source: KnowledgeSource
    parts: Path
    early: dict[Path, int]
    """Parts that an earlier start had finished, with the time when."""
    finished: set[Path]
    """Parts that were finished when the worker was killed."""
    killed: Mark
    """What it was at."""
    marks: list[Mark]


@pytest.fixture(scope="module")
def run(cluster: None, documents: Path, encoder: MarkingEncoder, tmp_path_factory: pytest.TempPathFactory) -> Run:
    folder, parts = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("work") / "parts"
    embed = RayEmbedding(parts, threads=1, passages_per_part=PER_PART)
    for part in open_parts(parts, read_corpus([documents], PLAN.max_words), encoder, "fp32", PER_PART).unfinished()[
        1:3
    ]:
        part.finish(embed_groups(part.groups(PER_PART), encoder, batch_size=4), encoder.dimension)
    early = {path: path.stat().st_mtime_ns for path in finished(parts)}
    for path in encoder.folder.iterdir():
        path.unlink()
    encoder.pause, encoder.waits_for = 0.5, 2
    seen: dict[str, Any] = {}

    def kill() -> None:
        wait_until(lambda: len(finished(parts)) >= 5)
        begun = len(marks(encoder.folder))
        wait_until(lambda: len(marks(encoder.folder)) > begun)
        seen.update(finished=finished(parts), killed=marks(encoder.folder)[-1])
        os.kill(seen["killed"].process, signal.SIGKILL)

    killer = threading.Thread(target=kill)
    killer.start()
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", OWN_WARNING, DeprecationWarning)
        build_knowledge_source([documents], encoder, folder, PLAN, embed)
    killer.join()
    return Run(KnowledgeSource(folder), parts, early, marks=marks(encoder.folder), **seen)


def finished(parts: Path) -> set[Path]:
    return set(parts.glob("embedded-*"))


def check_equal(source: KnowledgeSource, plain: KnowledgeSource) -> None:
    rows = np.arange(len(plain))
    assert len(source) == len(plain)
    assert source.store.passages(rows) == plain.store.passages(rows)
    np.testing.assert_allclose(source.store.vectors(rows), plain.store.vectors(rows), rtol=1e-5, atol=1e-5)
    assert source.manifest is not None and plain.manifest is not None
    differing: dict[str, Any] = {"files": {}, "statistics": {}}
    assert dataclasses.replace(source.manifest, **differing) == dataclasses.replace(plain.manifest, **differing)
    assert source.manifest.statistics.keys() == plain.manifest.statistics.keys()


def test_the_source_is_that_of_one_process(run: Run, plain: KnowledgeSource) -> None:
    check_equal(run.source, plain)
    folder = run.source.folder / PASSAGES_NAME
    assert len(list(folder.glob("*.arrow"))) == len(finished(run.parts)) == -(-len(plain) // PER_PART) > 10
    dataset = datasets.load_from_disk(str(folder))
    assert dataset["text"] == [passage.text for passage in plain.store.passages(np.arange(len(plain)))]


def test_all_workers_embed_and_the_one_who_asks_does_not(run: Run) -> None:
    """One on each host, and the one that came for the killed one; each with as many threads as asked for."""
    assert len({mark.host for mark in run.marks}) == 2
    assert len({mark.process for mark in run.marks}) in (2, 3)
    assert os.getpid() not in {mark.process for mark in run.marks}
    assert {mark.threads for mark in run.marks} == {1}


def test_a_killed_worker_costs_only_the_part_that_it_was_at(run: Run) -> None:
    counts = Counter(mark.what for mark in run.marks)
    assert len(run.finished) + 1 < len(finished(run.parts)), "it was killed in the middle"
    assert counts.pop(run.killed.what) == 2
    assert set(counts.values()) == {1}


def test_parts_of_an_earlier_start_are_not_done_again(run: Run) -> None:
    assert len(run.early) == 2
    assert {path: path.stat().st_mtime_ns for path in run.early} == run.early
    assert len({mark.what for mark in run.marks}) == len(finished(run.parts)) - 2


def test_when_only_the_index_is_missing_nobody_embeds(
    run: Run, documents: Path, encoder: MarkingEncoder, plain: KnowledgeSource, tmp_path: Path
) -> None:
    build_knowledge_source([documents], encoder, tmp_path, PLAN, RayEmbedding(run.parts))
    check_equal(KnowledgeSource(tmp_path), plain)
    assert marks(encoder.folder) == run.marks


@pytest.fixture
def broken_encoder(models_folder: Path) -> TextEncoder:
    encoder = load_encoder(str(models_folder / "passage_encoder"), "passage")
    next(encoder.parameters()).data.fill_(float("nan"))
    return encoder


def test_what_a_worker_refuses_is_told_in_a_sentence(
    cluster: None, documents: Path, broken_encoder: TextEncoder, tmp_path: Path
) -> None:
    (tmp_path / "source").mkdir()
    with pytest.raises(InputError, match=r"^The encoder .* gave vectors that are not finite; try --precision fp32\.$"):
        build_knowledge_source([documents], broken_encoder, tmp_path / "source", PLAN, RayEmbedding(tmp_path / "parts"))
    assert not any((tmp_path / "source").iterdir())
    assert not finished(tmp_path / "parts")


def test_a_worker_that_cannot_reach_the_folder_says_where_it_is(
    cluster: None, encoder: MarkingEncoder, tmp_path: Path
) -> None:
    import ray

    worker = EmbedPart(tmp_path / "parts", ray.put(encoder), batch_size=4, precision="fp32", threads=None)
    told = worker({"part": np.array([3])})
    host = socket.gethostname()
    refusal = (
        f"The Ray worker on {host} cannot work in {tmp_path / 'parts'} (No such file or directory); give an "
        "--output_dir on a file system that all hosts of the cluster share."
    )
    assert told == {"part": [3], "refusal": [refusal]}


def test_fp16_without_a_gpu_is_refused_before_parts_are_made(
    cluster: None, documents: Path, encoder: MarkingEncoder, tmp_path: Path
) -> None:
    plan = dataclasses.replace(PLAN, precision="fp16")
    with pytest.raises(InputError, match="fp16 needs a GPU"):
        build_knowledge_source([documents], encoder, tmp_path, plan, RayEmbedding(tmp_path / "parts"))
    assert not (tmp_path / "parts").exists()


@pytest.mark.parametrize(
    ("resources", "layout"),
    [
        ([{"CPU": 2.0}], WorkerLayout(1, 2)),
        ([{"CPU": 8.0}] * 3, WorkerLayout(3, 8)),
        ([{"CPU": 12.0}], WorkerLayout(2, 6)),
        ([{"CPU": 64.0}, {"CPU": 4.0}, {"memory": 1e9}], WorkerLayout(17, 4)),
        ([{"CPU": 32.0, "GPU": 4.0}, {"CPU": 16.0}], WorkerLayout(4, 8, gpus=1)),
        ([{"CPU": 6.0, "GPU": 2.0}, {"CPU": 32.0, "GPU": 1.0}], WorkerLayout(3, 3, gpus=1)),
        ([{"GPU": 2.0}], WorkerLayout(2, 0, gpus=1)),
    ],
)
def test_there_are_as_many_workers_as_the_cluster_has_room_for(
    resources: list[dict[str, float]], layout: WorkerLayout
) -> None:
    assert WorkerLayout.of(resources) == layout


def test_a_cluster_with_nothing_to_offer() -> None:
    with pytest.raises(InputError, match="The Ray cluster offers no CPU and no GPU"):
        WorkerLayout.of([{"memory": 1e9}, {"CPU": 0.0}])


@pytest.mark.parametrize(
    ("passages", "workers", "size"), [(40, 1, 512), (10_000, 1, 2500), (10_000, 4, 625), (10**6, 4, 8192)]
)
def test_parts_are_as_large_as_may_be_while_all_workers_have_some(passages: int, workers: int, size: int) -> None:
    from ragstone.knowledge.ray_embedding import _passages_per_part

    assert _passages_per_part(passages, workers) == size
