"""A part of a knowledge source, searched exactly."""

from __future__ import annotations

from ragstone.index.exact_range import ExactRange, Searcher, divide
from ragstone.knowledge.source import KnowledgeSource
from ragstone.retrieval.location import IndexDevice


def exact_part(source: KnowledgeSource, part: int, parts: int, device: IndexDevice) -> Searcher | None:
    """What searches part number `part` of `parts` of a source exactly; None where the source's own index does."""
    if parts == 1 and device == "cpu":
        return None
    first, last = divide(len(source), parts)[part]
    chunks = source.vectors(first, last)
    if device == "cuda":
        import torch

        from ragstone.index.device_range import DeviceRange

        return DeviceRange(chunks, first, torch.device("cuda", torch.cuda.current_device()))
    return ExactRange(chunks, first)
