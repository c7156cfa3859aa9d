"""Passages and their vectors in parquet files, as the hub publishes them: row groups are read when a row is asked for.

Shapes: n rows, D dimensions.
"""

from __future__ import annotations

import itertools
import re
import threading
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from ragstone.errors import InputError, one_line
from ragstone.knowledge.columns import TextColumn, VectorColumn
from ragstone.knowledge.passage_texts import as_passages, as_vectors, by_question, in_places
from ragstone.knowledge.store import TEXT_COLUMNS, VECTORS, as_matrix
from ragstone.types import NO_PASSAGE, FloatArray, IntArray, Passage

COLUMNS = (*TEXT_COLUMNS, VECTORS)
CACHED_BYTES = 256 * 2**20
"""Row groups that are kept decoded, at most; the last one read is kept whatever its size."""


def holds_parquet(folder: Path) -> bool:
    """Whether `folder` holds parquet files and is none of save_to_disk."""
    return not (folder / "state.json").exists() and any(folder.glob("*.parquet"))


def parquet_files(folder: Path) -> list[Path]:
    """The parquet files in `folder` in order.

    Raises:
        InputError: their names count (train-00003-of-00157.parquet), and one is missing.
    """
    paths = sorted(folder.glob("*.parquet"))
    counted = [re.search(r"-(\d+)-of-(\d+)\.parquet$", path.name) for path in paths]
    for number, found in enumerate(counted):
        if found is not None and (int(found[1]), int(found[2])) != (number, len(paths)):
            raise InputError(
                f"{folder} holds {len(paths)} parquet files, but {paths[number].name} is one of {int(found[2])}; run "
                "the download again, which goes on where it stopped."
            )
    return paths


@dataclass(frozen=True)
class _RowGroup:
    """A row group that was read."""

    titles: TextColumn
    texts: TextColumn
    vectors: VectorColumn
    bytes: int


class _File:
    """A parquet file that was opened, memory-mapped."""

    def __init__(self, path: Path) -> None:
        try:
            self.parquet = pq.ParquetFile(path, memory_map=True)
        except (OSError, pa.ArrowException) as error:
            raise _unreadable(path, error) from error
        metadata = self.parquet.metadata
        self.path = path
        self.rows = int(metadata.num_rows)
        sizes = (metadata.row_group(i).num_rows for i in range(metadata.num_row_groups))
        self.starts = np.array([0, *itertools.accumulate(sizes)], dtype=np.int64)

    def read(self, group: int, columns: Sequence[str]) -> Any:
        """A row group's columns as an Arrow table of one piece each."""
        try:
            return self.parquet.read_row_group(group, columns=list(columns)).combine_chunks()
        except (OSError, pa.ArrowException) as error:
            raise _unreadable(self.path, error) from error


class ParquetStore:
    """Opened parquet files; see RowStore. Any number of threads may read.

    Opening reads how many rows each file has, and the first row group. The layout of a file is read when the first of
    its rows is asked for.
    """

    def __init__(self, folder: Path, cached_bytes: int = CACHED_BYTES) -> None:
        """Open the parquet files in `folder`.

        Raises:
            InputError: one is missing or cannot be read, or they lack the columns title, text and embeddings.
        """
        self.folder = folder
        self.has_vectors = True
        self.maps_vectors = False
        self._paths = parquet_files(folder)
        self._starts = np.array([0, *itertools.accumulate(map(_row_count, self._paths))], dtype=np.int64)
        self._files: dict[int, _File] = {}
        self._cache: OrderedDict[tuple[int, int], _RowGroup] = OrderedDict()
        self._cached_bytes = cached_bytes
        self._lock = threading.Lock()
        if not len(self):
            raise InputError(f"The parquet files in {folder} hold no passages; download them again.")
        first = int(np.searchsorted(self._starts, 0, side="right")) - 1
        missing = set(COLUMNS) - set(self._file(first).parquet.schema_arrow.names)
        if missing:
            names = ", ".join(sorted(missing))
            raise InputError(
                f"{self._paths[first]} has no column {names}; give parquet files with {', '.join(COLUMNS)}."
            )
        ((group, _),) = self._by_group(np.zeros(1, dtype=np.int64))
        self.dimension = group.vectors.matrix.shape[1]

    def __len__(self) -> int:
        return int(self._starts[-1])

    def passages(self, rows: npt.ArrayLike) -> list[Passage]:
        """See RowStore.passages."""
        return as_passages(rows, self.text_bytes(rows))

    def passage_rows(self, ids: IntArray) -> list[list[Passage]]:
        """See RowStore.passage_rows."""
        return by_question(in_places(ids, self.passages, NO_PASSAGE), ids)

    def text_bytes(self, rows: npt.ArrayLike) -> list[memoryview]:
        """See RowStore.text_bytes."""
        rows = np.asarray(rows, dtype=np.int64)
        found = [memoryview(b"")] * (2 * len(rows))
        for group, places in self._by_group(rows):
            for place, offset in places:
                found[2 * place] = _own(group.titles[offset])
                found[2 * place + 1] = _own(group.texts[offset])
        return found

    def vector_bytes(self, rows: npt.ArrayLike) -> list[memoryview]:
        """See RowStore.vector_bytes."""
        rows = np.asarray(rows, dtype=np.int64)
        found = [memoryview(b"")] * len(rows)
        for group, places in self._by_group(rows):
            for place, offset in places:
                found[place] = _own(group.vectors[offset])
        return found

    def vectors(self, rows: npt.ArrayLike) -> FloatArray:
        """See RowStore.vectors."""
        return as_vectors(self.vector_bytes(rows), self.dimension)

    def vector_chunks(self, first: int = 0, last: int | None = None) -> Iterator[FloatArray]:
        """See RowStore.vector_chunks. A chunk is a row group, which is not kept."""
        last = len(self) if last is None else last
        for number, group, start, rows in self._row_groups():
            chunk = slice(max(0, first - start), min(rows, max(0, last - start)))
            if chunk.start < chunk.stop:
                with self._lock:
                    column = self._file(number).read(group, [VECTORS]).column(VECTORS)
                yield as_matrix(_whole(column), self.folder)[chunk].astype(np.float32, copy=False)

    def check_texts(self) -> int:
        """See RowStore.check_texts."""
        empty = 0
        for number, group, start, rows in self._row_groups():
            with self._lock:
                table = self._file(number).read(group, TEXT_COLUMNS)
            try:
                table.validate(full=True)
            except pa.ArrowInvalid as error:
                place = f"rows {start} to {start + rows - 1}"
                raise InputError(f"{self.folder} is damaged in {place} ({error}); download it again.") from error
            lengths = pc.fill_null(pc.binary_length(table.column("text")), 0)
            empty += int(pc.sum(pc.equal(lengths, 0)).as_py())
        return empty

    def _by_group(self, rows: npt.NDArray[np.int64]) -> Iterator[tuple[_RowGroup, list[tuple[int, int]]]]:
        """Each row group that has any of `rows`, read once, with their places in `rows` and their offsets in it."""
        wanted: dict[tuple[int, int], list[tuple[int, int]]] = {}
        numbers = np.searchsorted(self._starts, rows, side="right") - 1
        offsets = rows - self._starts[numbers]
        with self._lock:
            for place, (number, offset) in enumerate(zip(numbers.tolist(), offsets.tolist(), strict=True)):
                starts = self._file(number).starts
                group = int(np.searchsorted(starts, offset, side="right")) - 1
                wanted.setdefault((number, group), []).append((place, offset - int(starts[group])))
            for (number, group), places in sorted(wanted.items()):
                yield self._group(number, group), places

    def _group(self, number: int, group: int) -> _RowGroup:
        """A row group of file `number`, from the cache or read."""
        found = self._cache.pop((number, group), None)
        if found is None:
            table = self._file(number).read(group, COLUMNS)
            titles, texts = (TextColumn(_whole(table.column(name))) for name in TEXT_COLUMNS)
            vectors = VectorColumn(as_matrix(_whole(table.column(VECTORS)), self.folder))
            found = _RowGroup(titles, texts, vectors, table.nbytes)
        self._cache[number, group] = found
        held = sum(kept.bytes for kept in self._cache.values())
        while held > self._cached_bytes and len(self._cache) > 1:
            held -= self._cache.popitem(last=False)[1].bytes
        return found

    def _file(self, number: int) -> _File:
        if number not in self._files:
            self._files[number] = _File(self._paths[number])
        return self._files[number]

    def _row_groups(self) -> Iterator[tuple[int, int, int, int]]:
        """File, group, first row and number of rows of each row group."""
        for number in range(len(self._paths)):
            with self._lock:
                starts = self._file(number).starts
            for group, (start, end) in enumerate(itertools.pairwise(starts.tolist())):
                yield number, group, int(self._starts[number]) + start, end - start


def _row_count(path: Path) -> int:
    try:
        return int(pq.read_metadata(path).num_rows)
    except (OSError, pa.ArrowException) as error:
        raise _unreadable(path, error) from error


def _unreadable(path: Path, error: Exception) -> InputError:
    reason = one_line(error, 200)
    return InputError(f"{path} cannot be read ({reason}); download it again.")


def _own(piece: memoryview) -> memoryview:
    """A copy, for which the row group that it is from need not stay in memory."""
    return memoryview(bytes(piece))


def _whole(column: Any) -> Any:
    """A column of a table that is of one piece, as that piece."""
    return column.chunk(0) if isinstance(column, pa.ChunkedArray) else column
