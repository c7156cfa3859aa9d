"""Retrieval in the process that asks."""

from __future__ import annotations

import numpy as np

from ragstone.knowledge.source import KnowledgeSource
from ragstone.types import NO_PASSAGE, FloatArray, Retrieved


class LocalRetriever:
    """Searches a knowledge source that this process has opened."""

    def __init__(self, source: KnowledgeSource) -> None:
        self.source = source

    def retrieve(self, vectors: FloatArray, n_docs: int) -> Retrieved:
        """See Retriever.retrieve."""
        _, ids = self.source.index.search(vectors, n_docs)
        valid = ids >= 0
        found = np.zeros((*ids.shape, self.source.dimension), dtype=np.float32)
        found[valid] = self.source.store.vectors(ids[valid])
        passages = iter(self.source.store.passages(ids[valid]))
        return Retrieved(
            ids=ids,
            vectors=found,
            passages=[[next(passages) if ok else NO_PASSAGE for ok in row] for row in valid],
        )

    def close(self) -> None:
        """See Retriever.close; a memory map needs no closing."""
