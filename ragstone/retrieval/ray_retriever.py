"""Retrieval by Ray workers: whoever asks sends its question vectors to the worker that has least to do.

Ray replaces a worker that died and repeats its request. A part of a divided source is served by a crew of workers; an
undivided source has one crew.
"""

from __future__ import annotations

import dataclasses
import math
import uuid
from collections.abc import Callable, Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar, cast

import numpy as np

from ragstone.errors import InputError
from ragstone.index.searcher import best_of
from ragstone.knowledge.row_store import RowStore
from ragstone.knowledge.source import Indexes, KnowledgeSource, SourceInfo
from ragstone.processes.processes import Processes
from ragstone.retrieval.backend import InEveryProcess
from ragstone.retrieval.local import fetch
from ragstone.retrieval.location import IndexDevice, SourceLocation
from ragstone.retrieval.message import NO_MANIFEST, Request, decode, decode_found
from ragstone.retrieval.method import VECTORS_ALONE
from ragstone.retrieval.ray_crew import NAMESPACE, Crew, SharedBoard, call_each, let_all
from ragstone.retrieval.ray_worker import RetrievalWorker
from ragstone.retrieval.retriever import Retriever
from ragstone.types import NO_PASSAGE, FloatArray, IntArray, Retrieved

T = TypeVar("T")
WORKER_ENVIRONMENT = {
    # Threads that wait for the next search would spin for some milliseconds, on cores that others want.
    "OMP_WAIT_POLICY": "PASSIVE"
}


@dataclass(frozen=True)
class InRayWorkers:
    """Workers of the Ray cluster that all processes are connected to open the source, each in a process of its own."""

    processes: Processes
    workers: int = 1
    """Of each part."""
    parts: int = 1
    """Parts that the source is divided into, each searched exactly."""
    device: IndexDevice = "cpu"
    timeout: float = 600.0
    """Seconds in which a request must be answered, the replacement of a worker included."""

    def open(self, location: SourceLocation) -> tuple[SourceInfo, Retriever]:
        """See RetrievalBackend.open. The first process starts the workers; the others find them by name.

        A process with a worker on its own host reads the passages itself, from the map that both share.
        """
        import ray

        run = self.processes.share(uuid.uuid4().hex[:12])
        # Held as long as the retriever: a named worker ends with its last handle.
        held = self._start(location, run) if self.processes.place.is_first else []
        self.processes.share(None)
        with ExitStack() as unless_open:
            crews = [unless_open.enter_context(closing(self._crew(run, part))) for part in range(self.parts)]
            info = SourceInfo(**self.processes.on_first(lambda: dataclasses.asdict(open_everywhere(crews))))
            near = ray.get_runtime_context().get_node_id() in let_all(crews, "host")
            retriever = RayRetriever(crews, info, held, mapped_store(info) if near else None)
            unless_open.pop_all()
        return info, retriever

    def indexes(self, location: SourceLocation) -> Indexes:
        """See RetrievalBackend.indexes. Whatever is asked for: the source may be on the workers' hosts alone."""
        return Indexes(vectors=True, words=True)

    def locate(self, find: Callable[[], T]) -> T:
        """See RetrievalBackend.locate: by the first process, for the workers' hosts too."""
        return cast(T, self.processes.on_first(find))

    def for_words(self) -> InEveryProcess:
        """See RetrievalBackend.for_words.

        Raises:
            InputError: always.
        """
        raise InputError(VECTORS_ALONE)

    def _start(self, location: SourceLocation, run: str) -> list[Any]:
        import ray
        from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

        # A worker's working directory is the one that Ray was started in, and its host may have other symbolic links.
        index = None if location.index_path is None else str(Path(location.index_path).absolute())
        location = SourceLocation(str(Path(location.passages_path).absolute()), index)
        hosts = sum(node["Alive"] for node in ray.nodes())
        here = math.ceil(self.workers * self.parts / hosts)
        lasting: dict[str, Any] = {"max_restarts": -1, "max_task_retries": -1, "namespace": NAMESPACE}
        # An actor that asks for nothing at all goes to a host at random, whatever the scheduling strategy. A byte of
        # memory, which every host has, is enough to be heard.
        lasting |= {"num_cpus": 0, "memory": 1}
        searching = {"num_gpus": int(self.device == "cuda"), "scheduling_strategy": "SPREAD"}
        searching["runtime_env"] = {"env_vars": WORKER_ENVIRONMENT}
        # Asked before each search, so it is on this host if that can be.
        home = ray.get_runtime_context().get_node_id()
        here_first = NodeAffinitySchedulingStrategy(home, soft=True)
        worker: Any = ray.remote(RetrievalWorker)
        board: Any = ray.remote(SharedBoard)
        held = []
        for part in range(self.parts):
            for name in self._names(run, part):
                options = {**lasting, **searching, "name": name}
                held.append(worker.options(**options).remote(location, part, self.parts, self.device, here, home))
            if self._needs_board:
                options = {**lasting, "scheduling_strategy": here_first, "name": self._board_name(run, part)}
                held.append(board.options(**options).remote(self.workers))
        return held

    def _crew(self, run: str, part: int) -> Crew:
        serves = f" for part {part + 1} of {self.parts}" if self.parts > 1 else ""
        return Crew(self._names(run, part), self._board_name(run, part), self.timeout, serves)

    @property
    def _needs_board(self) -> bool:
        """Whether several processes ask several workers: a process alone knows what each worker has to do."""
        return self.workers > 1 and self.processes.place.size > 1

    def _names(self, run: str, part: int) -> list[str]:
        return [f"{run}-part{part}-worker{number}" for number in range(self.workers)]

    def _board_name(self, run: str, part: int) -> str | None:
        return f"{run}-part{part}-board" if self._needs_board else None


def open_everywhere(crews: Sequence[Crew]) -> SourceInfo:
    """Let every worker open its source, before anything is trained.

    Raises:
        InputError: one cannot, or has another source than the others.
    """
    first, *others = [SourceInfo(**fields) for fields in let_all(crews, "info")]
    if any(other.content != first.content for other in others):
        raise InputError(
            f"The knowledge source {first.folder} is not the same for all retrieval workers; put one version of it "
            "on all hosts."
        )
    return first


def mapped_store(info: SourceInfo) -> RowStore | None:
    """The passages of the source that `info` describes; None where this process cannot map the very same."""
    try:
        source = KnowledgeSource(Path(info.passages_path), None if info.index_path is None else Path(info.index_path))
    except (InputError, OSError):
        return None
    return source.store if source.store.maps_vectors and source.fingerprint() == info.fingerprint else None


class RayRetriever:
    """Asks the crews; merges what those of several parts found."""

    def __init__(self, crews: Sequence[Crew], info: SourceInfo, held: Sequence[Any], store: RowStore | None) -> None:
        """Ask `crews` for passages of the source that `info` describes.

        Args:
            crews: one of each part.
            info: see above.
            held: handles that keep the workers alive, in the process that started them.
            store: the passages, where this process reads them itself; where None, workers send them.
        """
        self._crews = crews
        self._version = info.version or NO_MANIFEST
        self._dimension = info.dimension
        self._held = list(held)
        self._store = store

    def retrieve(self, vectors: FloatArray, n_docs: int) -> Retrieved:
        """See Retriever.retrieve."""
        if len(vectors) == 0:
            return self._empty(np.empty((0, n_docs), np.int64))
        questions = vectors.astype(np.float32, copy=False).tobytes()
        if len(self._crews) == 1 and self._store is None:
            request = Request("retrieve", self._version, n_docs, questions)
            return _passages(self._crews[0].call(request))
        request = Request("search", self._version, n_docs, questions)
        answers = call_each(self._crews, [request] * len(self._crews))
        found = [decode_found(answer, len(vectors)) for answer in answers]
        # A single search's own order stands.
        ids = found[0][1] if len(found) == 1 else best_of(found, n_docs)[1]
        return fetch(ids, self._store) if self._store is not None else self._sent(ids, [part for _, part in found])

    def _sent(self, ids: IntArray, found: Sequence[IntArray]) -> Retrieved:
        """The passages of `ids` [B, N], of which each part found some, from the workers."""
        # Of each part that has any of them, as questions with one passage each.
        places = [np.nonzero(np.isin(ids, part) & (ids >= 0)) for part in found]
        asked = [(crew, place) for crew, place in zip(self._crews, places, strict=True) if len(place[0])]
        requests = [Request("fetch", self._version, 1, ids[place].tobytes()) for _, place in asked]
        merged = self._empty(ids)
        for answer, (_, place) in zip(call_each([crew for crew, _ in asked], requests), asked, strict=True):
            fetched = _passages(answer)
            merged.vectors[place] = fetched.vectors[:, 0]
            for row, column, (passage,) in zip(*place, fetched.passages, strict=True):
                merged.passages[row][column] = passage
        return merged

    def close(self) -> None:
        """See Retriever.close: lets the workers go."""
        import ray

        for crew in self._crews:
            crew.close()
        for actor in self._held:
            ray.kill(actor)
        self._held.clear()

    def _empty(self, ids: np.ndarray) -> Retrieved:
        vectors = np.zeros((*ids.shape, self._dimension), dtype=np.float32)
        return Retrieved(ids, vectors, [[NO_PASSAGE] * ids.shape[1] for _ in ids])


def _passages(answer: bytearray) -> Retrieved:
    return decode(np.frombuffer(answer, np.uint8))
