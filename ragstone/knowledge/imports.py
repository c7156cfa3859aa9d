"""Passages and vectors that were made elsewhere, as a knowledge source: streamed, in two passes over the passages."""

from __future__ import annotations

import itertools
import re
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ragstone.encoders.text_encoder import TextEncoder
from ragstone.errors import InputError
from ragstone.index.factory import BY_SIZE, factory_string
from ragstone.knowledge.build import complete_source, origin_of
from ragstone.knowledge.manifest import Manifest, Origin
from ragstone.knowledge.numbered_passages import count_numbered, read_numbered
from ragstone.knowledge.source import PASSAGES_NAME
from ragstone.knowledge.store import PassageWriter
from ragstone.knowledge.vector_files import VectorFiles
from ragstone.progress import progress_bar

ROWS_AT_ONCE = 4096


@dataclass(frozen=True)
class ImportPlan:
    """What is made of what was found."""

    index: str = BY_SIZE
    """auto, flat, hnsw, ivfpq or a FAISS factory string."""
    m: int = 128
    """Links of an HNSW node."""
    encoder: TextEncoder | None = None
    """The passage encoder that made the vectors, where it is known."""

    def origin(self, documents: int, max_words: int) -> Origin:
        """That of the source."""
        if self.encoder is None:
            return Origin(documents, max_words)
        return origin_of(self.encoder, documents, max_words)

    def refuse_other_dimension(self, dimension: int, where: Path) -> None:
        """Refuse vectors that the encoder cannot have made.

        Raises:
            InputError: names both.
        """
        if self.encoder is not None and self.encoder.dimension != dimension:
            raise InputError(
                f"{where} has vectors of {dimension} dimensions, but the passage encoder {self.encoder.name} makes "
                f"{self.encoder.dimension}; name the encoder that made them."
            )


def find_passages(folder: Path) -> Path:
    """The file of passages in a folder.

    Raises:
        InputError: there is none, or more than one.
    """
    found = sorted(path for ending in ("*.tsv", "*.tsv.gz") for path in folder.glob(ending))
    if len(found) != 1:
        listed = ", ".join(path.name for path in found) or "none"
        raise InputError(f"{folder} should hold one .tsv or .tsv.gz of passages, but has {listed}; give --passages.")
    return found[0]


def find_vectors(folder: Path) -> list[Path]:
    """The files of vectors in a folder, by the numbers in their names: 2 before 10.

    Raises:
        InputError: there are none, or both .npy and .pt.
    """
    kinds = {ending: list(folder.glob(f"*.{ending}")) for ending in ("npy", "pt")}
    found = [paths for paths in kinds.values() if paths]
    if len(found) != 1:
        what = "both .npy and .pt files" if found else "neither .npy nor .pt files"
        raise InputError(f"{folder} has {what}; give --vectors the files with the vectors.")
    return sorted(found[0], key=lambda path: [int(part) if part.isdigit() else part for part in _parts(path.name)])


def import_source(passages: Path, vectors: Sequence[Path], folder: Path, plan: ImportPlan) -> Manifest:
    """Make a knowledge source in `folder`, which is there and empty.

    Vectors whose files name their passages are put to them by name; others stand in the order of the passages.

    Raises:
        InputError: unusable files, or passages and vectors that do not belong together.
    """
    began = time.perf_counter()
    files = VectorFiles(vectors)
    plan.refuse_other_dimension(files.dimension, vectors[0])
    count = count_numbered(passages)
    if count.passages != len(files):
        raise InputError(
            f"{passages} holds {count.passages} passages, but there are {len(files)} vectors in {len(vectors)} "
            f"file(s) from {vectors[0]} on; give all files of vectors, and no others."
        )
    factory = factory_string(plan.index, files.dimension, count.passages, plan.m)
    with (
        PassageWriter(folder / PASSAGES_NAME, files.dimension) as writer,
        progress_bar("Importing", count.passages) as bar,
    ):
        stream = enumerate(read_numbered(passages))
        while group := list(itertools.islice(stream, ROWS_AT_ONCE)):
            rows = [files.row(number, passage.id) for number, passage in group]
            if None in rows:
                missing = group[rows.index(None)][1]
                raise InputError(
                    f"{passages}, line {missing.line}: the passage {missing.id!r} has no vector; give the vectors that "
                    "were made of these passages."
                )
            found = files.take(np.array(rows, dtype=np.int64))
            writer.write([passage.title for _, passage in group], [passage.text for _, passage in group], found)
            bar.advance(len(group))
    return complete_source(folder, factory, plan.origin(count.documents, count.max_words), began)


def _parts(name: str) -> list[str]:
    return re.split(r"(\d+)", name)
