"""Building a knowledge source: documents → passages → vectors → index, streamed from one to the next."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ragstone.arithmetic import Precision
from ragstone.encoders.text_encoder import TextEncoder
from ragstone.index.exact import exact_search, recall
from ragstone.index.factory import BY_SIZE, factory_string, refuse_unknown_index
from ragstone.index.vector_index import build_index
from ragstone.knowledge.bm25 import add_bm25
from ragstone.knowledge.corpus import Corpus, read_corpus
from ragstone.knowledge.embedding import embed_groups
from ragstone.knowledge.manifest import Manifest, Origin, write_manifest
from ragstone.knowledge.source import INDEX_NAME, PASSAGES_NAME, KnowledgeSource
from ragstone.knowledge.store import PassageStore, PassageWriter
from ragstone.progress import ProgressBar, activity, progress_bar
from ragstone.types import FloatArray

PASSAGES_AT_ONCE = 8192
"""Passages that are sorted by length together: enough to fill batches evenly, few enough to stay small in memory."""
SAMPLED_QUERIES = 256
RECALL_DEPTHS = (5, 20)


@dataclass(frozen=True)
class BuildPlan:
    """What to build and how."""

    index: str = BY_SIZE
    """auto, flat, hnsw, ivfpq or a FAISS factory string."""
    m: int = 128
    """Links of an HNSW node."""
    max_words: int = 100
    batch_size: int = 64
    precision: Precision = "auto"
    bm25: bool = False
    """Whether an index over words is built beside that over vectors."""


Embed = Callable[[Corpus, TextEncoder, BuildPlan, Path], None]
"""Writes all passages of a corpus with their vectors into a store: a folder that is not there yet."""


def embed_here(corpus: Corpus, encoder: TextEncoder, plan: BuildPlan, folder: Path) -> None:
    """Embed the corpus in this process, on the encoder's device; see Embed."""
    with PassageWriter(folder, encoder.dimension) as writer, progress_bar("Embedding", corpus.passages) as bar:
        groups = corpus.groups(PASSAGES_AT_ONCE)
        converted = encoder.in_precision(plan.precision)
        for group, vectors in embed_groups(groups, converted, batch_size=plan.batch_size, progress=bar):
            writer.write_passages(group, vectors)


def build_knowledge_source(
    files: Sequence[Path], encoder: TextEncoder, folder: Path, plan: BuildPlan, embed: Embed = embed_here
) -> Manifest:
    """Build a source from document files into `folder`, which is there and empty.

    Documents are read twice: first to see that all of them can be used, before hours go into embedding, then to embed
    them. Memory stays flat while they are; the index alone, unless it is flat, is held until it is complete.

    Raises:
        InputError: unusable documents or index.
    """
    began = time.perf_counter()
    refuse_unknown_index(plan.index, encoder.dimension)
    corpus = read_corpus(files, plan.max_words)
    factory = factory_string(plan.index, encoder.dimension, corpus.passages, plan.m)
    embed(corpus, encoder, plan, folder / PASSAGES_NAME)
    origin = origin_of(encoder, corpus.documents, plan.max_words)
    return complete_source(folder, factory, origin, began, bm25=plan.bm25)


def origin_of(encoder: TextEncoder, documents: int, max_words: int) -> Origin:
    """That of a source whose vectors `encoder` made."""
    return Origin(documents, max_words, encoder.record(), "cosine" if encoder.settings.normalize else "inner_product")


MakeIndex = Callable[[PassageStore, Path], bool]
"""Writes an index over the store's vectors to a path; false where it cannot, and wrote nothing."""


def complete_source(
    folder: Path,
    factory: str,
    origin: Origin,
    began: float,
    *,
    bm25: bool = False,
    make_index: MakeIndex | None = None,
) -> Manifest:
    """Build the index over passages that are in `folder` with their vectors, measure it, and describe the whole.

    Args:
        folder: of the source.
        factory: FAISS factory string.
        origin: see Origin.
        began: when the work on the source began, by time.perf_counter.
        bm25: whether an index over words is built beside it.
        make_index: makes the index another way than from all vectors.

    Raises:
        InputError: an index that cannot be built over so many vectors.
    """
    embedded = time.perf_counter()
    store = PassageStore(folder / PASSAGES_NAME)
    if make_index is None or not make_index(store, folder / INDEX_NAME):
        build_index(store.vector_chunks, len(store), store.dimension, factory, folder / INDEX_NAME)
    indexed = time.perf_counter()
    measured = measure_index(KnowledgeSource(folder / PASSAGES_NAME))
    if bm25:
        measured |= add_bm25(store, folder)
    seconds = {
        "seconds_embedding": round(embedded - began, 2),
        "seconds_indexing": round(indexed - embedded, 2),
    }
    return write_manifest(folder, origin, store, factory, seconds | measured, began)


def measure_index(source: KnowledgeSource) -> dict[str, float]:
    """Recall of the index against exact search, and queries per second, on a sample of the source's own vectors."""
    rows = np.linspace(0, len(source) - 1, min(SAMPLED_QUERIES, len(source))).astype(np.int64)
    queries = source.store.vectors(rows)
    depth = max(RECALL_DEPTHS)
    with progress_bar("Measuring the index", len(source)) as bar:
        exact, _ = exact_search(_watched(source.store.vector_chunks(), bar), queries, depth)
    with activity("Searching the index"):
        began = time.perf_counter()
        _, ids = source.index.search(queries, depth)
        seconds = time.perf_counter() - began
    vectors = source.store.vectors(ids.clip(min=0).reshape(-1)).reshape(*ids.shape, source.dimension)
    found = np.where(ids >= 0, np.einsum("bd,bnd->bn", queries, vectors), -np.inf).astype(np.float32)
    recalls = {f"recall@{n}": round(recall(found, exact, n), 4) for n in RECALL_DEPTHS}
    return {**recalls, "queries_per_second": round(len(rows) / seconds, 1)}


def _watched(chunks: Iterator[FloatArray], bar: ProgressBar) -> Iterator[FloatArray]:
    for chunk in chunks:
        yield chunk
        bar.advance(len(chunk))
