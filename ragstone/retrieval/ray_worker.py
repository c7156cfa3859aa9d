"""What runs in a Ray worker: a knowledge source, opened memory-mapped, or a part of one."""

from __future__ import annotations

import dataclasses
import os
import socket
import threading
from pathlib import Path
from typing import Any

from ragstone.errors import InputError, refused_by_system
from ragstone.knowledge.source import KnowledgeSource
from ragstone.retrieval.connection import Address, Payload, Server
from ragstone.retrieval.local import LocalRetriever
from ragstone.retrieval.location import IndexDevice, SourceLocation
from ragstone.retrieval.message import NO_MANIFEST, Request, encode, encode_found
from ragstone.retrieval.part import exact_part
from ragstone.retrieval.ray_line import server_here


class RetrievalWorker:
    """Becomes a Ray actor. The source is opened at the first request, and so again after the worker was replaced.

    Ray calls the methods below; requests for passages come over connections (`address`), see Request.
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
        # The actor's own thread opens a source before those of connections search.
        self._opening = threading.Lock()
        self._opened: LocalRetriever | None = None
        self._server: Server | None = None

    def info(self) -> dict[str, Any]:
        """The fields of the source's SourceInfo.

        Raises:
            InputError: it cannot be opened, or this host has no memory for a part that cannot be mapped.
        """
        return dataclasses.asdict(self._retriever().source.info())

    def address(self) -> Address:
        """Where requests are answered."""
        self._server = self._server or server_here(self._answer)
        return self._server.address

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

    def _answer(self, message: bytearray) -> Payload:
        """What the request in `message` asks for, as a message.

        Raises:
            InputError: see `_retriever`.
        """
        request = Request.decode(message)
        retriever = self._retriever(request.version)
        return _ANSWERS[request.kind](retriever, request)

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
        if version not in (None, retriever.source.version or NO_MANIFEST):
            raise InputError(
                f"{retriever.source.folder} was updated since this run began, and a retrieval worker that had to be "
                "started anew finds another version than the others; start the run again, with the new one for all."
            )
        return retriever

    def _open(self) -> LocalRetriever:
        with self._opening:
            if self._opened is None:
                # Ray sets one thread; a search may take the share of the host that is the worker's. FAISS and torch
                # read this when they are loaded.
                os.environ["OMP_NUM_THREADS"] = str(self._threads)
                source = KnowledgeSource(Path(self._location.passages_path), self._location.index)
                part = exact_part(source, self._part, self._parts, self._device, self._workers_here)
                self._opened = LocalRetriever(source, part)
            return self._opened


def _retrieve(retriever: LocalRetriever, request: Request) -> Payload:
    ids = retriever.search(request.questions(retriever.source.dimension), request.n_docs)
    return encode(ids, retriever.source.store).data


def _search(retriever: LocalRetriever, request: Request) -> Payload:
    found = retriever.searcher.search(request.questions(retriever.source.dimension), request.n_docs)
    return encode_found(*found)


def _fetch(retriever: LocalRetriever, request: Request) -> Payload:
    return encode(request.ids, retriever.source.store).data


_ANSWERS = {"retrieve": _retrieve, "search": _search, "fetch": _fetch}
