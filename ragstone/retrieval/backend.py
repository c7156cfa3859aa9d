"""Where retrieval takes place: in every process, in the first one for all, or in Ray workers. Chosen once per run."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol, TypeVar, cast

from ragstone.errors import InputError
from ragstone.index.threads import WithThreads
from ragstone.knowledge.source import Indexes, KnowledgeSource, SourceInfo, find_indexes
from ragstone.processes.group import ProcessGroup
from ragstone.processes.processes import OneProcess, Processes
from ragstone.retrieval.gathered import GatheredRetriever
from ragstone.retrieval.local import LocalRetriever
from ragstone.retrieval.location import IndexDevice, SourceLocation
from ragstone.retrieval.part import exact_part
from ragstone.retrieval.retriever import Retriever

T = TypeVar("T")


class RetrievalBackend(Protocol):
    """Opens a knowledge source where it is to be searched."""

    def open(self, location: SourceLocation) -> tuple[SourceInfo, Retriever]:
        """The source's description and what retrieves from it. With several processes, all call it.

        Raises:
            InputError: no knowledge source.
        """

    def indexes(self, location: SourceLocation) -> Indexes:
        """What the source can be searched by. With several processes, all call it.

        Raises:
            InputError: no knowledge source.
        """

    def locate(self, find: Callable[[], T]) -> T:
        """Let `find` say where a source is, in a way that JSON can hold; it is asked in the process that opens it.

        With several processes, all call it.

        Raises:
            InputError: raised by `find`.
        """

    def for_words(self) -> InEveryProcess:
        """Where it is opened instead, to be searched by words.

        Raises:
            InputError: it searches vectors alone.
        """


@dataclass(frozen=True)
class InEveryProcess:
    """Each process opens the source itself; on one host the memory map is shared."""

    device: IndexDevice = "cpu"
    """cuda: exact search over a copy of all vectors on this process's GPU, whatever the index."""
    processes: Processes = field(default_factory=OneProcess)
    """Those that open it."""

    def open(self, location: SourceLocation) -> tuple[SourceInfo, LocalRetriever]:
        """See RetrievalBackend.open.

        Raises:
            InputError: no knowledge source, or another one than the first process's.
        """
        source = self.open_source(location)
        return source.info(), LocalRetriever(source, exact_part(source, 0, 1, self.device))

    def open_source(self, location: SourceLocation) -> KnowledgeSource:
        """The source alone, with nothing made ready for a search by vectors; raises as `open` does."""
        opened: KnowledgeSource | InputError
        said: dict[str, Any]
        try:
            opened = KnowledgeSource(Path(location.passages_path), location.index)
            said = {"content": opened.info().content}
        except InputError as error:
            opened, said = error, {"refused": str(error)}
        # One that raised alone would leave the others waiting.
        everyone = self.processes.gather(said)
        if isinstance(opened, InputError):
            raise opened
        for rank, other in enumerate(everyone):
            if "refused" in other:
                raise InputError(f"Rank {rank} cannot open the knowledge source: {other['refused']}")
            if other != everyone[0]:
                raise InputError(
                    f"The knowledge source {opened.folder} is not the same for rank {rank} as for rank 0; put one "
                    "version of it on all hosts."
                )
        return opened

    def indexes(self, location: SourceLocation) -> Indexes:
        """See RetrievalBackend.indexes."""
        return find_indexes(Path(location.passages_path))

    def locate(self, find: Callable[[], T]) -> T:
        """See RetrievalBackend.locate."""
        return find()

    def for_words(self) -> InEveryProcess:
        """See RetrievalBackend.for_words."""
        return self


@dataclass(frozen=True)
class InFirstProcess:
    """The first process alone opens the source."""

    processes: ProcessGroup
    device: IndexDevice = "cpu"

    def open(self, location: SourceLocation) -> tuple[SourceInfo, Retriever]:
        """See RetrievalBackend.open."""
        opened: list[LocalRetriever] = []

        def open_here() -> dict[str, object]:
            info, retriever = InEveryProcess(self.device).open(location)
            # While the first process searches, the others on its host wait: the search may have all the cores.
            retriever.searcher = WithThreads(retriever.searcher, len(os.sched_getaffinity(0)))
            opened.append(retriever)
            return dataclasses.asdict(info)

        info = SourceInfo(**self.processes.on_first(open_here))
        return info, GatheredRetriever(self.processes, opened[0] if opened else None)

    def indexes(self, location: SourceLocation) -> Indexes:
        """See RetrievalBackend.indexes. The first process looks; the others may have no source."""
        here = InEveryProcess(self.device)
        return Indexes(**self.locate(lambda: dataclasses.asdict(here.indexes(location))))

    def locate(self, find: Callable[[], T]) -> T:
        """See RetrievalBackend.locate: the source may be on the first process's host alone."""
        return cast(T, self.processes.on_first(find))

    def for_words(self) -> InEveryProcess:
        """See RetrievalBackend.for_words."""
        return InEveryProcess(self.device, self.processes)
