"""What runs in a Ray worker: a knowledge source, opened memory-mapped, or a part of one."""

from __future__ import annotations

import dataclasses
import os
import socket
from pathlib import Path
from typing import Any

import numpy as np

from ragstone.errors import InputError, refused_by_system
from ragstone.knowledge.source import KnowledgeSource
from ragstone.retrieval.local import LocalRetriever
from ragstone.retrieval.location import IndexDevice, SourceLocation
from ragstone.retrieval.message import Message, encode, encode_found
from ragstone.retrieval.part import exact_part
from ragstone.types import FloatArray, IntArray


class RetrievalWorker:
    """Becomes a Ray actor. The source is opened at the first request, and so again after the worker was replaced.

    Question vectors [B, D] float32 come as bytes, and what a search found goes back so: Ray moves bytes as they are,
    and pickles arrays, which takes half a millisecond of a request.
    """

    def __init__(
        self, location: SourceLocation, part: int, parts: int, device: IndexDevice, workers_here: int, home: str
    ) -> None:
        """Serve a part of a source.

        Args:
            location: where the source is, on this host as on all others.
            part: number of the part.
            parts: how many there are.
            device: see RetrievalSettings.
            workers_here: how many workers there are on a host.
            home: the host of the run's first process, by Ray's name for it.
        """
        self._location = location
        self._part = part
        self._parts = parts
        self._device = device
        self._workers_here = workers_here
        self._home = home
        self._threads = max(1, len(os.sched_getaffinity(0)) // workers_here)
        self._opened: LocalRetriever | None = None

    def info(self) -> dict[str, Any]:
        """The fields of the source's SourceInfo.

        Raises:
            InputError: it cannot be opened, or this host has no memory for a part that cannot be mapped.
        """
        return dataclasses.asdict(self._retriever().source.info())

    def retrieve(self, version: str | None, vectors: bytes, n_docs: int) -> Message:
        """See Retriever.retrieve; the answer as a message. For `version`, as for the next, see `_retriever`."""
        retriever = self._retriever(version)
        return encode(retriever.search(self._questions(vectors), n_docs), retriever.source.store)

    def search(self, version: str | None, vectors: bytes, n_docs: int) -> bytes:
        """Scores [B, N] and ids [B, N] of the best of this part, as a message."""
        return encode_found(*self._retriever(version).searcher.search(self._questions(vectors), n_docs))

    def fetch(self, version: str | None, ids: IntArray) -> Message:
        """The passages of `ids` [B, N], as a message."""
        return encode(ids, self._retriever(version).source.store)

    def threads(self) -> tuple[int, int]:
        """How many threads a search by FAISS takes, and one by torch."""
        self._retriever()
        import faiss
        import torch

        return int(faiss.omp_get_max_threads()), torch.get_num_threads()

    def process(self) -> int:
        """The number of the worker's process."""
        return os.getpid()

    def host(self) -> str:
        """The worker's host, by Ray's name for it."""
        import ray

        return str(ray.get_runtime_context().get_node_id())

    def _retriever(self, version: str | None = None) -> LocalRetriever:
        """What searches, opened where it is not yet.

        Raises:
            InputError: it cannot be opened, or is not of `version`: a worker that was replaced finds what stands in the
                source's place by then. Names the host, where it is not the first process's.
        """
        try:
            retriever = self._open()
        except (InputError, OSError) as error:
            sentence = refused_by_system(error) if isinstance(error, OSError) else str(error)
            if sentence is None:
                raise
            where = "" if self.host() == self._home else f"On {socket.gethostname()}, where a retrieval worker runs: "
            raise InputError(where + sentence) from error
        if version not in (None, retriever.source.version):
            raise InputError(
                f"{retriever.source.folder} was updated since this run began, and a retrieval worker that had to be "
                "started anew finds another version than the others; start the run again, with the new one for all."
            )
        return retriever

    def _questions(self, vectors: bytes) -> FloatArray:
        return np.frombuffer(vectors, np.float32).reshape(-1, self._retriever().source.dimension)

    def _open(self) -> LocalRetriever:
        if self._opened is None:
            # Ray sets one thread; a search may take the share of the host that is the worker's. FAISS and torch read
            # this when they are loaded.
            os.environ["OMP_NUM_THREADS"] = str(self._threads)
            source = KnowledgeSource(Path(self._location.passages_path), self._location.index)
            part = exact_part(source, self._part, self._parts, self._device, self._workers_here)
            self._opened = LocalRetriever(source, part)
        return self._opened
