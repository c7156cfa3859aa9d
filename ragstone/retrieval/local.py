"""Retrieval in the process that asks."""

from __future__ import annotations

from ragstone.index.searcher import Searcher
from ragstone.knowledge.passage_texts import as_vectors, in_places
from ragstone.knowledge.row_store import RowStore
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
        return fetch(self.search(vectors, n_docs), self.source.store)

    def search(self, vectors: FloatArray, n_docs: int) -> IntArray:
        """The ids [B, N] that `retrieve` finds."""
        _, ids = self.searcher.search(vectors, n_docs)
        return ids

    def close(self) -> None:
        """See Retriever.close; a memory map needs no closing."""


def fetch(ids: IntArray, store: RowStore) -> Retrieved:
    """The passages of `ids` [B, N] with their vectors; empty where the id is -1."""
    pieces = in_places(ids, store.vector_bytes, memoryview(bytes(4 * store.dimension)))
    vectors = as_vectors(pieces, store.dimension).reshape(*ids.shape, store.dimension)
    return Retrieved(ids, vectors, store.passage_rows(ids))
