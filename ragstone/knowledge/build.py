"""Building a knowledge source: documents → passages → vectors → index, streamed from one to the next."""

from __future__ import annotations

import itertools
import shutil
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ragstone.encoders.precision import Precision
from ragstone.encoders.text_encoder import TextEncoder, check_finite
from ragstone.errors import InputError
from ragstone.index.exact import exact_search, recall
from ragstone.index.factory import factory_string
from ragstone.index.vector_index import build_index
from ragstone.knowledge.documents import read_documents
from ragstone.knowledge.manifest import Manifest, checksum
from ragstone.knowledge.passages import split_document
from ragstone.knowledge.source import INDEX_NAME, PASSAGES_NAME, KnowledgeSource
from ragstone.knowledge.store import PassageStore, PassageWriter
from ragstone.progress import progress_bar
from ragstone.types import Passage

PASSAGES_AT_ONCE = 8192
"""Passages that are sorted by length together: enough to fill batches evenly, few enough to stay small in memory."""
SAMPLED_QUERIES = 256
RECALL_DEPTHS = (5, 20)


@dataclass(frozen=True)
class BuildPlan:
    """What to build and how."""

    index: str = "hnsw"
    """flat, hnsw, ivfpq or a FAISS factory string."""
    m: int = 128
    """Links of an HNSW node."""
    max_words: int = 100
    batch_size: int = 64
    precision: Precision = "auto"


def build_knowledge_source(files: Sequence[Path], encoder: TextEncoder, folder: Path, plan: BuildPlan) -> Manifest:
    """Build a source from document files into `folder`, which must be empty or not there yet.

    Everything is made in a folder of its own within `folder` and moved at the end, so that a source is there whole or
    not at all. Memory stays flat while passages are embedded; the index alone may need memory that grows with them.

    Raises:
        InputError: unusable documents or index, or a folder that holds something.
    """
    refuse_used_folder(folder)
    made_here = not folder.exists()
    folder.mkdir(parents=True, exist_ok=True)
    workshop = Path(tempfile.mkdtemp(prefix=".building-", dir=folder))
    try:
        manifest = _build(files, encoder, workshop, plan)
        for path in (workshop / PASSAGES_NAME, workshop / INDEX_NAME, workshop / "knowledge.json"):
            path.rename(folder / path.name)
    except BaseException:
        shutil.rmtree(workshop)
        if made_here and not any(folder.iterdir()):
            folder.rmdir()
        raise
    workshop.rmdir()
    return manifest


def refuse_used_folder(folder: Path) -> None:
    """Refuse an output folder that holds something, which might be another run's work.

    Raises:
        InputError: names the folder.
    """
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise InputError(f"The output folder {folder} is not empty; give --output_dir a new or an empty folder.")


def _build(files: Sequence[Path], encoder: TextEncoder, folder: Path, plan: BuildPlan) -> Manifest:
    began = time.perf_counter()
    documents, passages = _write_passages(files, encoder, folder / PASSAGES_NAME, plan)
    embedded = time.perf_counter()
    store = PassageStore(folder / PASSAGES_NAME)
    factory = factory_string(plan.index, encoder.dimension, passages, plan.m)
    build_index(store.vector_chunks, passages, encoder.dimension, factory, folder / INDEX_NAME)
    indexed = time.perf_counter()
    paths = sorted(path for path in folder.rglob("*") if path.is_file())
    manifest = Manifest(
        encoder=encoder.name,
        encoder_fingerprint=encoder.fingerprint(),
        dimension=encoder.dimension,
        metric="inner_product",
        documents=documents,
        passages=passages,
        max_words=plan.max_words,
        index=factory,
        files={str(path.relative_to(folder)): checksum(path) for path in paths},
        statistics={
            "bytes": sum(path.stat().st_size for path in paths),
            "seconds_embedding": round(embedded - began, 2),
            "seconds_indexing": round(indexed - embedded, 2),
            **measure_index(KnowledgeSource(folder / PASSAGES_NAME)),
        },
    )
    manifest.save(folder)
    return manifest


def _write_passages(files: Sequence[Path], encoder: TextEncoder, folder: Path, plan: BuildPlan) -> tuple[int, int]:
    """Split, embed and write all documents; the numbers of documents and of passages."""
    counter = itertools.count()
    with PassageWriter(folder, encoder.dimension) as writer, progress_bar("Embedding") as bar:
        stream = _passages(files, plan.max_words, counter)
        while group := list(itertools.islice(stream, PASSAGES_AT_ONCE)):
            titles, texts = [passage.title for passage in group], [passage.text for passage in group]
            vectors = encoder.embed(texts, titles, batch_size=plan.batch_size, precision=plan.precision, progress=bar)
            check_finite(vectors, encoder)
            writer.write(titles, texts, vectors)
        if not writer.count:
            raise InputError(f"There is no text in {', '.join(map(str, files))}; a knowledge source needs documents.")
    return next(counter), writer.count


def _passages(files: Sequence[Path], max_words: int, counter: Iterator[int]) -> Iterator[Passage]:
    """All passages; `counter` is advanced by one for each document."""
    number = 0
    for document in read_documents(files):
        next(counter)
        for passage in split_document(document, max_words, number):
            yield passage
            number += 1


def measure_index(source: KnowledgeSource) -> dict[str, float]:
    """Recall of the index against exact search, and queries per second, on a sample of the source's own vectors."""
    rows = np.linspace(0, len(source) - 1, min(SAMPLED_QUERIES, len(source))).astype(np.int64)
    queries = source.store.vectors(rows)
    depth = max(RECALL_DEPTHS)
    _, exact = exact_search(source.store.vector_chunks(), queries, depth)
    began = time.perf_counter()
    _, found = source.index.search(queries, depth)
    seconds = time.perf_counter() - began
    recalls = {f"recall@{n}": round(recall(found, exact, n), 4) for n in RECALL_DEPTHS}
    return {**recalls, "queries_per_second": round(len(rows) / seconds, 1)}
