"""Which knowledge source flags and a checkpoint's config mean: where an index's name becomes a location."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any

from ragstone.errors import InputError
from ragstone.knowledge.dummy import dummy_source
from ragstone.knowledge.index_name import CUSTOM, LEGACY
from ragstone.knowledge.legacy import find_converted
from ragstone.knowledge.source import SourceInfo
from ragstone.knowledge.wiki_dpr import NAMES, PUBLISHED_INDEXES, find_wiki_dpr
from ragstone.model.checkpoint import DENSE, own_settings
from ragstone.retrieval.backend import RetrievalBackend
from ragstone.retrieval.location import SourceLocation


@dataclass(frozen=True)
class SourceRequest:
    """What a user gives; None or false leaves what the checkpoint says."""

    passages_path: str | None = None
    index_path: str | None = None
    index_name: str | None = None
    use_dummy_dataset: bool = False


@dataclass(frozen=True)
class ChosenSource:
    """Where the source is, and how a checkpoint that is saved with it names it."""

    location: SourceLocation
    index_name: str = CUSTOM
    """custom: the checkpoint records the source's own paths."""
    use_dummy_dataset: bool = False

    def record(self, config: Any, info: SourceInfo) -> None:
        """Write into a RagConfig what opens the source again without flags."""
        own = self.index_name == CUSTOM and not self.use_dummy_dataset
        config.index_name = self.index_name
        config.use_dummy_dataset = self.use_dummy_dataset
        config.passages_path = info.passages_path if own else None
        config.index_path = info.index_path if own else None


def choose_source(request: SourceRequest, config: Any) -> ChosenSource:
    """The source that a request means, and else a checkpoint's `config` (RagConfig).

    Raises:
        InputError: none is named, or the one that is named is not on this machine.
    """
    if request.use_dummy_dataset:
        return _dummy(config)
    if request.passages_path is not None:
        return ChosenSource(SourceLocation(request.passages_path, request.index_path))
    index_path = request.index_path or config.index_path
    if request.index_name in (None, CUSTOM):
        if config.passages_path is not None:
            return ChosenSource(SourceLocation(config.passages_path, index_path))
        if config.use_dummy_dataset and request.index_name is None:
            return _dummy(config)
    return _named(request.index_name or config.index_name, index_path, config)


def choose_source_for_all(request: SourceRequest, config: Any, backend: RetrievalBackend) -> ChosenSource:
    """As choose_source, in the process that opens the source with `backend`. With several processes, all call it.

    Raises:
        InputError: see choose_source.
    """
    found = backend.locate(lambda: dataclasses.asdict(choose_source(request, config)))
    return ChosenSource(**{**found, "location": SourceLocation(**found["location"])})


def _named(name: str, index_path: str | None, config: Any) -> ChosenSource:
    if name in PUBLISHED_INDEXES:
        if config.dataset not in NAMES:
            raise InputError(
                f"The model names the index {name!r} of the data set {config.dataset!r}, which is not known here; give "
                "--passages_path the folder of a knowledge source."
            )
        passages, index = find_wiki_dpr(name)
        if index_path is not None:
            return ChosenSource(SourceLocation(str(passages), index_path))
        return ChosenSource(SourceLocation(str(passages), str(index)), name)
    if name == LEGACY:
        return ChosenSource(SourceLocation(str(find_converted(index_path))))
    asked = f"the index {name!r}, which is not known here" if name != CUSTOM else "no knowledge source"
    raise InputError(f"The model names {asked}; give --passages_path the folder of a knowledge source.")


def _dummy(config: Any) -> ChosenSource:
    encoder = config.question_encoder
    dimension = getattr(encoder, "projection_dim", 0) or encoder.hidden_size
    if own_settings(config).get(DENSE):
        dimension = config.retrieval_vector_size
    location = SourceLocation(str(dummy_source(dimension)))
    return ChosenSource(location, config.index_name, use_dummy_dataset=True)
