"""An old DPR index as a knowledge source: converted once, its pickles read by a process of its own.

Shapes: n rows, D dimensions.
"""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from ragstone.errors import InputError
from ragstone.index.factory import factory_string
from ragstone.index.vector_index import VectorIndex
from ragstone.knowledge import legacy_pickles
from ragstone.knowledge.build import complete_source
from ragstone.knowledge.imports import ImportPlan
from ragstone.knowledge.manifest import Manifest
from ragstone.knowledge.source import PASSAGES_NAME
from ragstone.knowledge.store import PassageWriter
from ragstone.progress import progress_bar
from ragstone.types import FloatArray

CONVERTED_NAME = "ragstone"
"""Folder beside the old files where the source is looked for."""
TEXTS_NAME = "texts.arrow"
UNEVEN = 0.05
"""By how much of their mean the squared lengths of lengthened vectors may vary: rounding to 8 bits takes 1 %."""


@dataclass(frozen=True)
class LegacyFiles:
    """The three files of an old index."""

    passages: Path
    """*.pkl: a dictionary of id to text and title."""
    meta: Path
    """*index_meta.dpr: the ids of the index's rows."""
    index: Path
    """*index.dpr: a FAISS index."""


def find_converted(folder: str | None) -> Path:
    """The source that was made of the old index in `folder`.

    Raises:
        InputError: there is none; says what makes it.
    """
    if folder is None:
        raise InputError(
            "--index_name legacy needs --index_path, the folder of the old index that ragstone import-legacy converted."
        )
    converted = Path(folder) / CONVERTED_NAME
    if not converted.is_dir():
        raise InputError(
            f"The old index in {folder} is not converted yet ({converted} is not there); do it once with "
            f"ragstone import-legacy {folder}."
        )
    return converted


def find_legacy_files(folder: Path) -> LegacyFiles:
    """The files of an old index in a folder.

    Raises:
        InputError: one is missing, or there are two of a kind.
    """
    found = []
    for pattern, what in (("*.pkl", "passages"), ("*index_meta.dpr", "ids"), ("*index.dpr", "the index")):
        paths = sorted(folder.glob(pattern))
        if len(paths) != 1:
            listed = ", ".join(path.name for path in paths) or "none"
            raise InputError(
                f"{folder} should hold one {pattern} with {what}, but has {listed}; give a folder that holds one."
            )
        found.append(paths[0])
    return LegacyFiles(*found)


def convert_legacy(files: LegacyFiles, folder: Path, plan: ImportPlan) -> Manifest:
    """Make a knowledge source in `folder`, which is there and empty.

    The vectors are those that the old index gives back, which a compressed one has rounded.

    Raises:
        InputError: a file that cannot be used or holds more than plain data, or files that do not belong together.
    """
    began = time.perf_counter()
    vectors = LegacyVectors(files.index)
    plan.refuse_other_dimension(vectors.dimension, files.index)
    factory = factory_string(plan.index, vectors.dimension, len(vectors), plan.m)
    texts = folder / TEXTS_NAME
    with progress_bar("Reading passages"):
        _unpickle_elsewhere(files, texts)
    row = documents = max_words = 0
    before = None
    with (
        PassageWriter(folder / PASSAGES_NAME, vectors.dimension) as writer,
        progress_bar("Importing", len(vectors)) as bar,
    ):
        for titles, passages in _read_texts(texts):
            if row + len(titles) > len(vectors):
                break
            writer.write(titles, passages, vectors.take(row, len(titles)))
            row += len(titles)
            for title, text in zip(titles, passages, strict=True):
                documents += title != before
                before = title
                max_words = max(max_words, text.count(" ") + 1)
            bar.advance(len(titles))
    if row != len(vectors):
        raise InputError(
            f"{files.index} holds {len(vectors)} vectors, but {files.meta} does not name as many passages: the two "
            "belong to different indexes; give the files of one."
        )
    texts.unlink()
    return complete_source(folder, factory, plan.origin(documents, max_words), began)


class LegacyVectors:
    """The vectors of an old index [n, D].

    DPR's flat index ranks by inner product. Its HNSW index ranks by distance, over vectors that one more number brings
    to equal length, so that the nearest have the largest inner product; that number is taken off.
    """

    def __init__(self, path: Path) -> None:
        """Open the index at `path`, memory-mapped.

        Raises:
            InputError: no index, one that gives no vectors back, or one by distance whose vectors were not lengthened.
        """
        import faiss

        self._path = path
        index = VectorIndex.open(path)
        self._count = len(index)
        inner: Any = faiss.downcast_index(index.faiss_index)
        self._kept = index
        self._storage = faiss.downcast_index(inner.storage) if isinstance(inner, faiss.IndexHNSW) else inner
        self._lengthened = not index.is_inner_product
        self.dimension = index.dimension - self._lengthened
        if self._lengthened:
            self._refuse_uneven()

    def __len__(self) -> int:
        return self._count

    def take(self, first: int, count: int) -> FloatArray:
        """The vectors of `count` rows from `first` on."""
        return self._whole(first, count)[:, : self.dimension]

    def _whole(self, first: int, count: int) -> FloatArray:
        try:
            return np.asarray(self._storage.reconstruct_n(first, count), dtype=np.float32)
        except RuntimeError as error:
            raise InputError(
                f"{self._path} does not give its vectors back, as only flat and HNSW indexes do; build a knowledge "
                "source from the passages."
            ) from error

    def _refuse_uneven(self) -> None:
        sample = np.linspace(0, self._count - 1, min(self._count, 256)).astype(np.int64)
        lengths = np.array([(self._whole(int(row), 1) ** 2).sum() for row in sample])
        if lengths.std() > UNEVEN * lengths.mean():
            raise InputError(
                f"{self._path} ranks by distance, over vectors of unequal length: it is not one of DPR's; build a "
                "knowledge source from the passages."
            )


def _unpickle_elsewhere(files: LegacyFiles, texts: Path) -> None:
    command = [sys.executable, "-P", legacy_pickles.__file__, str(files.passages), str(files.meta), str(texts)]
    done = subprocess.run(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, check=False)
    if done.returncode == legacy_pickles.REFUSED:
        raise InputError(done.stderr.strip().splitlines()[-1])
    if done.returncode:
        last = (done.stderr.strip().splitlines() or ["it was ended from outside, perhaps for want of memory"])[-1]
        raise InputError(
            f"{files.passages} could not be read by a process of its own ({last}); start again, or build a knowledge "
            "source from the passages."
        )


def _read_texts(path: Path) -> Iterator[tuple[list[str], list[str]]]:
    """Titles and texts, batch by batch."""
    with pa.memory_map(str(path)) as file, pa.ipc.open_stream(file) as stream:
        for batch in stream:
            yield batch.column("title").to_pylist(), batch.column("text").to_pylist()
