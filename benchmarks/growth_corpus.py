"""Indexes over synthetic sources of growing size, and what retrieves from them.

Shapes: n vectors, D dimensions, B questions, N passages per question.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.synthetic_source import SyntheticSource, vector_chunks
from ragstone.index.factory import POINTS_PER_CENTROID
from ragstone.index.vector_index import PROBES, VectorIndex
from ragstone.knowledge.store import PassageStore
from ragstone.progress import progress_bar
from ragstone.types import FloatArray, IntArray

LISTS = 4096
"""Of the largest compressed index: as many as the published compressed index of Wikipedia has."""
CENTROID_LINKS = 32
ADDED_AT_ONCE = 50_000


def hnsw_source(source: SyntheticSource) -> Path:
    """The index that the reference's script builds over a source."""
    return source.write_reference_index()


def ivfpq_index(source: SyntheticSource, size: int) -> Path:
    """A compressed index over `size` vectors: those of `source`, or where it has fewer, as many of the same kind.

    Its lists are found by a graph over their centroids, as in the published compressed index of Wikipedia.
    """
    import faiss

    path = source.passages_path.parent / f"ivfpq-{size}.faiss"
    if path.is_file():
        return path
    lists = min(LISTS, 2 ** int(np.log2(size / POINTS_PER_CENTROID)))
    factory = f"IVF{lists}_HNSW{CENTROID_LINKS},PQ{max(1, source.dimension // 8)}"
    index = faiss.index_factory(source.dimension, factory, faiss.METRIC_INNER_PRODUCT)
    inverted = faiss.downcast_index(index)
    inverted.do_polysemous_training = False  # type: ignore[attr-defined]
    inverted.nprobe = min(PROBES, lists)  # type: ignore[attr-defined]
    with progress_bar("Training the index"):
        index.train(np.concatenate(list(_first(_chunks(source, size), POINTS_PER_CENTROID * lists))))
    with progress_bar("Indexing", size) as bar:
        for chunk in _larger(_chunks(source, size)):
            index.add(chunk)
            bar.advance(len(chunk))
    new = path.with_suffix(".new")
    faiss.write_index(index, str(new))
    new.replace(path)
    return path


class StandIn:
    """Searches an index that has more vectors than there are passages, and reads other passages in their place."""

    def __init__(self, index: VectorIndex, passages_path: Path) -> None:
        self._index = index
        self._store = PassageStore(passages_path)

    def retrieve(self, vectors: FloatArray, n_docs: int) -> tuple[IntArray, FloatArray, list[Any]]:
        """Ids [B, N], vectors [B·N, D] and B·N passages for question vectors [B, D]."""
        _, ids = self._index.search(vectors, n_docs)
        rows = ids.reshape(-1) % len(self._store)
        return ids, self._store.vectors(rows), self._store.passages(rows)


def reference_retriever(source: SyntheticSource, index: Path) -> Any:
    """transformers' RagRetriever over a source."""
    from transformers import RagConfig, RagRetriever
    from transformers.models.rag.retrieval_rag import CustomHFIndex

    opened = CustomHFIndex.load_from_disk(source.dimension, str(source.passages_path), str(index))
    return RagRetriever(RagConfig(), question_encoder_tokenizer=None, generator_tokenizer=None, index=opened)


def _chunks(source: SyntheticSource, size: int) -> Iterator[FloatArray]:
    if size > source.size:
        return vector_chunks(size, source.dimension)
    return PassageStore(source.passages_path).vector_chunks()


def _first(chunks: Iterator[FloatArray], count: int) -> Iterator[FloatArray]:
    """Chunks with at least so many vectors, or all."""
    seen = 0
    for chunk in chunks:
        yield chunk
        seen += len(chunk)
        if seen >= count:
            return


def _larger(chunks: Iterator[FloatArray]) -> Iterator[FloatArray]:
    """Chunks that keep all threads busy."""
    held: list[FloatArray] = []
    for chunk in chunks:
        held.append(chunk)
        if sum(map(len, held)) >= ADDED_AT_ONCE:
            yield np.concatenate(held)
            held = []
    if held:
        yield np.concatenate(held)
