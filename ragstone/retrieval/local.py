"""Retrieval in the process that asks."""

from __future__ import annotations

import numpy as np

from ragstone.index.searcher import Searcher
from ragstone.knowledge.source import KnowledgeSource
from ragstone.types import FloatArray, IntArray, Retrieved


class LocalRetriever:
    """Searches a knowledge source that this process has opened."""

    def __init__(self, source: KnowledgeSource, searcher: Searcher | None = None) -> None:
        """`searcher` searches instead of the source's index."""
        self.source = source
        self.searcher = searcher or source.index

    def retrieve(self, vectors: FloatArray, n_docs: int) -> Retrieved:
        """See Retriever.retrieve."""
        return self.fetch(self.search(vectors, n_docs))

    def search(self, vectors: FloatArray, n_docs: int) -> IntArray:
        """The ids [B, N] that `retrieve` finds."""
        _, ids = self.searcher.search(vectors, n_docs)
        return ids

    def fetch(self, ids: IntArray) -> Retrieved:
        """The passages of `ids` [B, N] with their vectors; empty where the id is -1."""
        valid = ids >= 0
        store, dimension = self.source.store, self.source.dimension
        if valid.all():
            found = store.vectors(ids.reshape(-1)).reshape(*ids.shape, dimension)
        else:
            found = np.zeros((*ids.shape, dimension), dtype=np.float32)
            found[valid] = store.vectors(ids[valid])
        return Retrieved(ids=ids, vectors=found, passages=store.passage_rows(ids))

    def close(self) -> None:
        """See Retriever.close; a memory map needs no closing."""
