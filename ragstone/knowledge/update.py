"""A knowledge source with documents added and deleted: kept passages keep their vectors, only new ones are embedded."""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ragstone.arithmetic import Precision
from ragstone.encoders.text_encoder import TextEncoder
from ragstone.errors import InputError
from ragstone.index.factory import factory_string
from ragstone.index.vector_index import extend_index
from ragstone.knowledge.bm25 import complete_bm25_source
from ragstone.knowledge.build import PASSAGES_AT_ONCE, complete_source, origin_of
from ragstone.knowledge.corpus import Corpus, read_corpus
from ragstone.knowledge.documents import read_documents
from ragstone.knowledge.embedding import embed_groups
from ragstone.knowledge.manifest import FILE_NAME, Manifest, Origin
from ragstone.knowledge.row_store import RowStore
from ragstone.knowledge.source import INDEX_NAME, PASSAGES_NAME, KnowledgeSource
from ragstone.knowledge.store import ROWS_PER_BATCH, PassageStore, PassageWriter
from ragstone.knowledge.unrecorded import describe, read_texts, refuse_other_vectors
from ragstone.progress import progress_bar
from ragstone.types import IntArray

OpenEncoder = Callable[[Manifest], TextEncoder]
"""Opens the passage encoder that a manifest names, on its device."""


@dataclass(frozen=True)
class UpdatePlan:
    """What to change and how."""

    add: tuple[Path, ...] = ()
    """Files of documents to add."""
    delete_titles: tuple[str, ...] = ()
    """Titles whose documents are deleted."""
    replace: bool = False
    """Also delete what has the title of a document that is added."""
    index: str | None = None
    """As in BuildPlan; the factory string of the source where None."""
    m: int = 128
    batch_size: int = 64
    precision: Precision = "auto"


@dataclass(frozen=True)
class Updated:
    """What an update did."""

    manifest: Manifest
    """Of the updated source."""
    added: int
    """Passages that were embedded."""
    deleted: int
    """Passages that are gone."""


@dataclass(frozen=True)
class _Deletion:
    kept: IntArray
    """Rows that stay, in order."""
    documents: int
    """How many documents go."""
    titles: frozenset[str]
    """Those of them that there are."""


def update_knowledge_source(old: Path, new: Path, plan: UpdatePlan, open_encoder: OpenEncoder) -> Updated:
    """Write the source in `old` with the changes of `plan` into `new`, which is there and empty.

    Passages that stay come first, in their order, with the vectors that they have; those of the added documents follow.
    So a passage may get another row than it had. Files in `old` that are no part of the source are taken over.

    Raises:
        InputError: `old` is no source, unusable documents, a title that is not there, another encoder than that of the
            source, an index for vectors that there are none of, no passage would be left, or `old` was updated
            meanwhile.
    """
    began = time.perf_counter()
    source = KnowledgeSource(old)
    if plan.index is not None and not source.has_vectors:
        raise InputError(f"--index is for vectors, and {old} has none: it is searched by words; leave --index out.")
    manifest = source.manifest or describe(source)
    corpus = read_corpus(plan.add, manifest.max_words) if plan.add else None
    titles = set(plan.delete_titles)
    deletion = _find(source.store, titles | (_titles(plan.add) if plan.replace else set()), manifest.max_words)
    _refuse_unknown(titles - deletion.titles, old)
    added, kept = 0 if corpus is None else corpus.passages, len(deletion.kept)
    if added + kept == 0:
        raise InputError(f"No passage of {old} would be left; remove the folder instead.")
    factory = manifest.index
    if plan.index is not None:
        factory = factory_string(plan.index, source.dimension, kept + added, plan.m)
    elif not factory:
        raise InputError(f"{old} has no {FILE_NAME}, which would name its index; say with --index which one to build.")
    encoder = open_encoder(manifest) if corpus is not None and source.has_vectors else None
    if encoder is not None:
        _refuse_other_encoder(encoder, manifest, source)
    with PassageWriter(new / PASSAGES_NAME, source.dimension) as writer:
        _copy(source.store, deletion.kept, writer)
        if corpus is not None:
            _add(corpus, encoder, plan, writer)
    documents = manifest.documents - deletion.documents + (0 if corpus is None else corpus.documents)
    if source.has_vectors:
        origin = Origin(documents, manifest.max_words, manifest.encoder_record, manifest.metric)
        if encoder is not None and manifest.encoder_record is None:
            # It has shown that it makes the vectors that are there.
            origin = origin_of(encoder, documents, manifest.max_words)

        def grow(store: PassageStore, path: Path) -> bool:
            """Continue the old index, where all that it holds stays."""
            if kept < len(source) or factory != manifest.index:
                return False
            # It is read by its path, where another update may have put another version meanwhile.
            return extend_index(
                source.index_path, lambda: store.vector_chunks(kept), added, path, source.refuse_updated
            )

        updated = complete_source(new, factory, origin, began, bm25=source.has_bm25, make_index=grow)
    else:
        updated = complete_bm25_source(new, documents, manifest.max_words, began)
    _take_over_others(old, new, manifest)
    return Updated(updated, added, len(source) - kept)


def _titles(files: tuple[Path, ...]) -> set[str]:
    titles = {document.title for document in read_documents(files)}
    if "" in titles:
        raise InputError(
            "A document that is to be added has no title, so --replace cannot tell which one it replaces; give it a "
            "title, or leave --replace out."
        )
    return titles


def _find(store: RowStore, titles: set[str], max_words: int) -> _Deletion:
    """The rows whose title is none of `titles`.

    A document begins where the title changes, or behind a passage that is shorter than those that others follow.
    """
    wanted = {title.encode(): title for title in titles}
    kept = np.ones(len(store), dtype=bool)
    found: set[str] = set()
    documents, before, ended = 0, b"", True
    for row, (title, text) in enumerate(read_texts(store) if wanted else ()):
        if title in wanted:
            kept[row] = False
            found.add(wanted[title])
            documents += ended or title != before
        before, ended = title, text.count(b" ") + 1 < max_words
    return _Deletion(np.flatnonzero(kept), documents, frozenset(found))


def _refuse_unknown(titles: set[str], folder: Path) -> None:
    if titles:
        first = ", ".join(map(repr, sorted(titles)[:3])) + (", ..." if len(titles) > 3 else "")
        raise InputError(
            f"{folder} has no passage of {len(titles)} of the titles that are to be deleted ({first}); write a title "
            "as it is there, with capitals and blanks."
        )


def _refuse_other_encoder(encoder: TextEncoder, manifest: Manifest, source: KnowledgeSource) -> None:
    """Vectors of another encoder mean nothing beside those that are there."""
    built, folder = manifest.encoder_record, source.folder
    if built is None:
        refuse_other_vectors(encoder, source)
        return
    if encoder.fingerprint() == built.fingerprint:
        return
    differences = built.differences(encoder.record())
    reason = f"; they differ in {', '.join(differences)}" if differences else ""
    raise InputError(
        f"{folder} was built with the passage encoder {built.name} (fingerprint {built.fingerprint}), but "
        f"{encoder.name} is another one (fingerprint {encoder.fingerprint()}){reason}; give the one that built it to "
        "--dpr_ctx_encoder_model_name, or build the source again."
    )


def _copy(store: RowStore, rows: IntArray, writer: PassageWriter) -> None:
    with progress_bar("Copying", len(rows)) as bar:
        for start in range(0, len(rows), ROWS_PER_BATCH):
            some = rows[start : start + ROWS_PER_BATCH]
            writer.write_passages(store.passages(some), store.vectors(some) if store.has_vectors else None)
            bar.advance(len(some))


def _add(corpus: Corpus, encoder: TextEncoder | None, plan: UpdatePlan, writer: PassageWriter) -> None:
    """Write the corpus with vectors, or without where there is no encoder."""
    if encoder is None:
        for group in corpus.groups(PASSAGES_AT_ONCE):
            writer.write_passages(group)
        return
    converted = encoder.in_precision(plan.precision)
    with progress_bar("Embedding", corpus.passages) as bar:
        groups = corpus.groups(PASSAGES_AT_ONCE)
        for group, vectors in embed_groups(groups, converted, batch_size=plan.batch_size, progress=bar):
            writer.write_passages(group, vectors)


def _take_over_others(old: Path, new: Path, manifest: Manifest) -> None:
    """Copy what is in the folder beside the source: settings, notes."""
    parts = {FILE_NAME, PASSAGES_NAME, INDEX_NAME, *(Path(name).parts[0] for name in manifest.files)}
    for path in old.iterdir():
        if path.name in parts or (new / path.name).exists():
            continue
        if path.is_dir() and not path.is_symlink():
            shutil.copytree(path, new / path.name, symlinks=True)
        else:
            shutil.copy2(path, new / path.name, follow_symlinks=False)
