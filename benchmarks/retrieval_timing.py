"""One way of retrieval timed against the bare index search, in turn, in fresh processes.

Shapes: B questions of a batch, N passages per question, D dimensions, Q questions in all.
"""

from __future__ import annotations

import itertools
import os
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from ragstone.index.exact import recall
from ragstone.index.vector_index import VectorIndex
from ragstone.processes.group import joined
from ragstone.processes.launch import launch
from ragstone.processes.processes import Processes
from ragstone.retrieval.choice import RetrievalSettings, connected, retrieval_backend
from ragstone.retrieval.location import SourceLocation
from ragstone.retrieval.ray_crew import NAMESPACE
from ragstone.retrieval.retriever import Retriever
from ragstone.types import FloatArray

BATCH = 32
N_DOCS = 5
TIMEOUT = 600.0
BATCHES = {0.1: 300, 1.0: 100}
"""How many are timed, by the seconds that one takes less than; FEWEST where it takes more."""
FEWEST = 30


@dataclass(frozen=True)
class Backend:
    """A way of retrieval."""

    settings: RetrievalSettings
    processes: int = 1
    """That ask at the same time, each for its part of a batch."""


BACKENDS = {
    "in-process": Backend(RetrievalSettings()),
    "pytorch": Backend(RetrievalSettings("pytorch"), processes=2),
    "ray-1": Backend(RetrievalSettings("ray", "local", workers=1)),
    "ray-2": Backend(RetrievalSettings("ray", "local", workers=2)),
}


@dataclass(frozen=True)
class Task:
    """What is timed."""

    backend: Backend
    passages_path: str
    index_path: str
    questions: FloatArray
    """[Q, D], Q a multiple of BATCH: batches that are asked over and over."""
    exact: FloatArray
    """[Q, N] inner products that exact search finds, see index.exact.recall."""
    batches: int | None = None
    """How many are timed; None: by what one takes."""


@dataclass(frozen=True)
class Timed:
    """Seconds of each batch, and what else was seen."""

    bare: list[float]
    """Of the index search alone, for all questions of a batch, in the first process."""
    asked: list[list[tuple[float, float]]]
    """When the backend was asked, and when it had answered, by rank of the process that asks: one clock for all."""
    askers: int
    """Requests that were on their way at a time while throughput was measured; one while latency was."""
    throughput: float | None
    """Questions a second with so many; None where it is one."""
    threads: int
    """That a search takes, in the backend and alone."""
    recall: float

    @property
    def whole(self) -> list[float]:
        """Of the backend, from when all have asked until the last has its part of a batch."""
        return [
            max(end for _, end in parts) - max(began for began, _ in parts) for parts in zip(*self.asked, strict=True)
        ]

    @property
    def by_rank(self) -> list[list[float]]:
        """Of the backend, by rank of the process that asks."""
        return [[end - began for began, end in times] for times in self.asked]

    @property
    def queries_per_second(self) -> float:
        return self.throughput or BATCH * len(self.whole) / sum(self.whole)


def timed(task: Task) -> Timed:
    """Time `task` in processes of its own.

    Their threads sleep when they wait, as those of retrieval workers do: with both kinds on the same cores, those that
    spin would take the time of the others, and the bare search would be searched in another way than the backend's.
    """
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    return launch(_time, task, task.backend.processes)


def _time(task: Task) -> Timed:
    """What each of these processes does."""
    import faiss

    settings = task.backend.settings
    with joined(torch.device("cpu"), TIMEOUT) as processes, connected(settings, processes):
        location = SourceLocation(task.passages_path, task.index_path)
        _, retriever = retrieval_backend(settings, processes, TIMEOUT).open(location)
        threads = _worker_threads() if settings.backend == "ray" else len(os.sched_getaffinity(0))
        faiss.omp_set_num_threads(threads)
        torch.set_num_threads(threads)
        bench = _Bench(task, processes, retriever)
        found, seconds = bench.warm_up()
        count = task.batches or next((count for limit, count in BATCHES.items() if seconds < limit), FEWEST)
        bare, asked = bench.alternate(count)
        # Each worker can have a request of its own.
        askers = settings.workers
        throughput = bench.throughput(count, askers) if askers > 1 else None
        retriever.close()
    return Timed(bare, asked, askers, throughput, threads, found)


def _worker_threads() -> int:
    """The threads of a search in the Ray workers of this run, which are all of one mind."""
    import ray

    actors = [actor["name"] for actor in ray.util.list_named_actors(all_namespaces=True)]
    workers = [ray.get_actor(name, NAMESPACE) for name in actors if "-worker" in name]
    found: list[tuple[int, int]] = ray.get([worker.threads.remote() for worker in workers])
    (threads,) = {each for pair in found for each in pair}
    return threads


class _Bench:
    """The bare index and a retriever, asked in turn. Every method is called by all processes."""

    def __init__(self, task: Task, processes: Processes, retriever: Retriever) -> None:
        place, batches = processes.place, len(task.questions) // BATCH
        self._processes = processes
        self._retriever = retriever
        self._index = VectorIndex.open(Path(task.index_path)) if place.is_first else None
        self._batches = np.split(task.questions, batches)
        self._parts = [np.array_split(batch, place.size)[place.rank] for batch in self._batches]
        self._exact = [np.array_split(batch, place.size)[place.rank] for batch in np.split(task.exact, batches)]

    def warm_up(self) -> tuple[float, float]:
        """Ask every batch once: the recall, and the seconds that a batch takes."""
        scores, seconds = [], []
        for batch, part in zip(self._batches, self._parts, strict=True):
            self._search(batch)
            began = time.perf_counter()
            found = self._retriever.retrieve(part, N_DOCS)
            seconds.append(time.perf_counter() - began)
            products = np.einsum("bd,bnd->bn", part, found.vectors)
            scores.append(np.where(found.mask, products, -np.inf).astype(np.float32))
        own = recall(np.concatenate(scores), np.concatenate(self._exact), N_DOCS)
        seen = self._processes.gather([own, float(np.median(seconds))])
        return float(np.mean([found for found, _ in seen])), max(took for _, took in seen)

    def alternate(self, count: int) -> tuple[list[float], list[list[tuple[float, float]]]]:
        """`count` batches: seconds of the bare search, and begin and end of the retriever's by rank."""
        bare, asked = [], []
        for number in range(count):
            bare.append(self._search(self._batches[number % len(self._batches)]))
            # Other questions than the search before, whose vectors the processor has at hand now.
            part = self._parts[(number + len(self._parts) // 2) % len(self._parts)]
            # All ask at the same time, and nobody goes on before all have their answers.
            self._processes.share(None)
            began = time.perf_counter()
            self._retriever.retrieve(part, N_DOCS)
            asked.append((began, time.perf_counter()))
            self._processes.share(None)
        return self._processes.share(bare), self._processes.gather(asked)

    def throughput(self, count: int, askers: int) -> float:
        """Questions answered per second while `askers` threads of this process ask `count` batches."""

        def ask(batch: FloatArray) -> int:
            return len(self._retriever.retrieve(batch, N_DOCS))

        with ThreadPoolExecutor(askers) as pool:
            # A worker that had no request yet warms up.
            list(pool.map(ask, self._parts))
            began = time.perf_counter()
            answered = sum(pool.map(ask, itertools.islice(itertools.cycle(self._parts), count)))
            return answered / (time.perf_counter() - began)

    def _search(self, batch: FloatArray) -> float:
        """Seconds of the bare search, in the first process; the others go on."""
        if self._index is None:
            return 0.0
        began = time.perf_counter()
        self._index.search(batch, N_DOCS)
        return time.perf_counter() - began
