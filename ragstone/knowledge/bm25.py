"""Search by words in a knowledge source: its BM25 index built, or a whole source that has no other, and checked."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from ragstone.errors import InputError
from ragstone.index.bm25 import REMEDY, Bm25Index, build_bm25
from ragstone.index.words import split_words
from ragstone.knowledge.corpus import read_corpus
from ragstone.knowledge.manifest import Manifest, Origin, write_manifest
from ragstone.knowledge.row_store import RowStore
from ragstone.knowledge.source import BM25_NAME, PASSAGES_NAME, KnowledgeSource
from ragstone.knowledge.store import PassageStore, PassageWriter
from ragstone.progress import progress_bar, track
from ragstone.types import Passage

BM25 = "bm25"
"""Metric and index of a source without vectors, in its manifest."""
PASSAGES_AT_ONCE = 8192
SAMPLED_PASSAGES = 256


def add_bm25(store: RowStore, folder: Path) -> dict[str, float]:
    """Build a BM25 index of the store's passages, titles included, beside it in `folder`; what it took and gave."""
    began = time.perf_counter()
    build_bm25((words_of(passage) for passage in track(_passages(store), "Words", len(store))), folder / BM25_NAME)
    words = Bm25Index.open(folder / BM25_NAME).vocabulary
    return {"seconds_bm25": round(time.perf_counter() - began, 2), "bm25_words": words}


def build_bm25_source(files: Sequence[Path], folder: Path, max_words: int) -> Manifest:
    """Build a source without vectors from document files into `folder`, which is there and empty.

    Raises:
        InputError: unusable documents.
    """
    began = time.perf_counter()
    corpus = read_corpus(files, max_words)
    with PassageWriter(folder / PASSAGES_NAME, 0) as writer, progress_bar("Passages", corpus.passages) as bar:
        for group in corpus.groups(PASSAGES_AT_ONCE):
            writer.write_passages(group)
            bar.advance(len(group))
    return complete_bm25_source(folder, corpus.documents, max_words, began)


def complete_bm25_source(folder: Path, documents: int, max_words: int, began: float) -> Manifest:
    """Build the index over the words of passages that are in `folder` without vectors, and describe the whole.

    `began` is when the work on the source began, by time.perf_counter.
    """
    store = PassageStore(folder / PASSAGES_NAME)
    statistics = add_bm25(store, folder)
    return write_manifest(folder, Origin(documents, max_words, metric=BM25), store, BM25, statistics, began)


def check_bm25(source: KnowledgeSource) -> int:
    """Check a source's BM25 index: all weights, and on a sample that each word of a passage leads to it.

    Returns:
        How many words it knows.

    Raises:
        InputError: damaged, or of other passages.
    """
    index = source.bm25
    index.check()
    rows = np.linspace(0, len(source) - 1, min(SAMPLED_PASSAGES, len(source))).astype(np.int64)
    for row, passage in zip(rows.tolist(), track(source.store.passages(rows), "Words"), strict=True):
        for word in sorted(set(split_words(words_of(passage)))):
            having = index.rows_with(word)
            place = int(np.searchsorted(having, row))
            if place == len(having) or having[place] != row:
                raise InputError(
                    f"The BM25 index {index.path} does not have the word {word!r} for row {row} of "
                    f"{source.store.folder}: it is damaged or was built from other passages; {REMEDY}."
                )
    return index.vocabulary


def words_of(passage: Passage) -> str:
    """The text that a passage is found by: its title belongs to it."""
    return f"{passage.title} {passage.text}"


def _passages(store: RowStore) -> Iterator[Passage]:
    for start in range(0, len(store), PASSAGES_AT_ONCE):
        yield from store.passages(range(start, min(len(store), start + PASSAGES_AT_ONCE)))
