"""Checking a knowledge source byte by byte, and its indexes against what they were built from.

Shapes: n rows, D dimensions.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ragstone.errors import InputError
from ragstone.index.check import check_index
from ragstone.knowledge.bm25 import check_bm25
from ragstone.knowledge.build import measure_index
from ragstone.knowledge.manifest import FILE_NAME, Manifest, checksum
from ragstone.knowledge.source import PASSAGES_NAME, KnowledgeSource
from ragstone.progress import progress_bar, track
from ragstone.replacement import read_one_version
from ragstone.types import FloatArray

REMEDY = "copy it again from where it was built, or build the knowledge source again"
MINIMAL_RECALL = 0.1
"""recall@20 below which an index is taken for one of other passages; the coarsest compression finds more."""


@dataclass(frozen=True)
class SourceReport:
    """What a sound knowledge source holds."""

    folder: Path
    manifest: Manifest | None
    """None for a source without knowledge.json, as the reference's script makes it."""
    passages: int
    dimension: int
    index: str | None
    """FAISS class of the index; None where there are no vectors."""
    bm25_words: int | None
    """Words of the BM25 index; None where there is none."""
    files: int
    """Files whose checksums were compared."""
    without_text: int
    """Passages whose text is empty: never of use, though harmless."""
    recall: dict[str, float]
    """recall@5, recall@20 and queries_per_second of the index against exact search on a sample; empty without one."""


def verify_source(path: Path) -> SourceReport:
    """Check a knowledge source: checksums, counts, dimension, finite vectors, readable text, the index's answers.

    Args:
        path: the folder that build-knowledge wrote, or the passages folder within it.

    Raises:
        InputError: no source, or a damaged one; names the file and what to do.
    """
    folder = path.parent if path.name == PASSAGES_NAME else path
    # What an update replaces in the middle of it is checked anew, and not taken for damaged.
    return read_one_version(folder, lambda: _verify(path, folder))


def _verify(path: Path, folder: Path) -> SourceReport:
    manifest = Manifest.load(folder)
    # Before anything is opened: libraries that map a damaged file may crash instead of complaining.
    files = 0 if manifest is None else _check_files(folder, manifest)
    source = KnowledgeSource(path)
    if manifest is not None:
        _check_manifest(source, manifest)
    without_text = source.store.check_texts()
    kind, recall = _check_vectors(source) if source.has_vectors else (None, {})
    if not source.has_vectors and not source.has_bm25:
        raise InputError(f"{source.folder} holds neither vectors nor a BM25 index, so nothing can be found; {REMEDY}.")
    words = check_bm25(source) if source.has_bm25 else None
    return SourceReport(folder, manifest, len(source), source.dimension, kind, words, files, without_text, recall)


def _check_vectors(source: KnowledgeSource) -> tuple[str, dict[str, float]]:
    """FAISS class of the index, and what it finds."""
    kind = check_index(source.index, _finite(source), source.index_path)
    recall = measure_index(source)
    if recall["recall@20"] < MINIMAL_RECALL:
        raise InputError(
            f"{source.index_path} finds {recall['recall@20']:.1%} of the passages that exact search finds in "
            f"{source.store.folder}: it belongs to others or is damaged; {REMEDY}."
        )
    return kind, recall


def _check_files(folder: Path, manifest: Manifest) -> int:
    for name, expected in track(list(manifest.files.items()), "Checksums"):
        file = folder / name
        if not file.is_file():
            raise InputError(f"{file} is missing, but {FILE_NAME} lists it; {REMEDY}.")
        try:
            found = checksum(file)
        except OSError as error:
            raise InputError(f"{file} cannot be read ({error.strerror}); {REMEDY}.") from error
        if found != expected:
            raise InputError(f"{file} is damaged: its checksum is not the one in {FILE_NAME}; {REMEDY}.")
    return len(manifest.files)


def _check_manifest(source: KnowledgeSource, manifest: Manifest) -> None:
    for what, stated, found in (
        ("passages", manifest.passages, len(source)),
        ("dimensions", manifest.dimension, source.dimension),
    ):
        if stated != found:
            raise InputError(
                f"{source.folder / FILE_NAME} states {stated} {what}, but {source.store.folder} has {found}; {REMEDY}."
            )
    if source.has_vectors and not source.index.is_inner_product:
        raise InputError(f"{source.index_path} does not rank by inner product, as {FILE_NAME} states; {REMEDY}.")


def _finite(source: KnowledgeSource) -> Iterator[FloatArray]:
    """The source's vectors, each chunk checked."""
    row = 0
    with progress_bar("Comparing vectors", len(source)) as bar:
        for chunk in source.store.vector_chunks():
            broken = np.flatnonzero(~np.isfinite(chunk).all(axis=1))
            if len(broken):
                place = f"row {row + broken[0]} of {source.store.folder}"
                raise InputError(f"The vector in {place} is not finite; {REMEDY}.")
            yield chunk
            row += len(chunk)
            bar.advance(len(chunk))
