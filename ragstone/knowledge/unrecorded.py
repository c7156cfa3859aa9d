"""A knowledge source without knowledge.json, as the reference's script makes: what it tells of itself."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

from ragstone.encoders.text_encoder import TextEncoder
from ragstone.errors import InputError
from ragstone.index.vector_index import VectorIndex
from ragstone.knowledge.manifest import Manifest
from ragstone.knowledge.row_store import RowStore
from ragstone.knowledge.source import KnowledgeSource
from ragstone.knowledge.store import ROWS_PER_BATCH

MAX_WORDS = 100
"""Words of a passage, in the reference's script."""
SAMPLED_PASSAGES = 32
TOLERANCE = 0.05
"""How far from a vector, in parts of its length, the same encoder's may be on another device or in fewer digits."""


def read_texts(store: RowStore) -> Iterator[tuple[bytes, bytes]]:
    """Title and text of every row."""
    for start in range(0, len(store), ROWS_PER_BATCH):
        parts = store.text_bytes(np.arange(start, min(start + ROWS_PER_BATCH, len(store))))
        yield from ((bytes(title), bytes(text)) for title, text in zip(parts[::2], parts[1::2], strict=True))


def describe(source: KnowledgeSource) -> Manifest:
    """A manifest of what can be seen: no encoder, and no index where its factory string does not show."""
    documents, longest = 0, 0
    before, ended = b"", True
    for title, text in read_texts(source.store):
        words = text.count(b" ") + 1
        documents += ended or title != before
        before, ended, longest = title, words < MAX_WORDS, max(longest, words)
    return Manifest(
        encoder=None,
        encoder_fingerprint=None,
        dimension=source.dimension,
        metric="inner_product",
        documents=documents,
        passages=len(source),
        max_words=max(longest, MAX_WORDS),
        index=_factory(source.index) if source.has_vectors else "",
        files={},
        statistics={},
    )


def refuse_other_vectors(encoder: TextEncoder, source: KnowledgeSource) -> None:
    """Refuse an encoder whose vectors of a sample of the passages are not those that are there.

    Raises:
        InputError: names both.
    """
    remedy = "give the one that made them to --dpr_ctx_encoder_model_name, or build the source again"
    if encoder.dimension != source.dimension:
        raise InputError(
            f"{source.folder} has vectors of {source.dimension} dimensions, but {encoder.name} makes "
            f"{encoder.dimension}; {remedy}."
        )
    rows = np.linspace(0, len(source) - 1, min(SAMPLED_PASSAGES, len(source))).astype(np.int64)
    passages, there = source.store.passages(rows), source.store.vectors(rows)
    made = encoder.embed([passage.text for passage in passages], [passage.title for passage in passages])
    lengths = np.linalg.norm(there, axis=1)
    if np.median(np.linalg.norm(made - there, axis=1) / np.maximum(lengths, 1e-9)) > TOLERANCE:
        raise InputError(f"{encoder.name} makes other vectors of the passages in {source.folder}; {remedy}.")


def _factory(index: VectorIndex) -> str:
    """The factory string of an index that the reference's script, or a flat build, makes; else empty."""
    import faiss

    inner = faiss.downcast_index(index.faiss_index)
    if not index.is_inner_product:
        return ""
    if isinstance(inner, faiss.IndexHNSWFlat):
        graph: Any = inner.hnsw
        return f"HNSW{graph.nb_neighbors(1)},Flat"
    return "" if index.matrix() is None else "Flat"
