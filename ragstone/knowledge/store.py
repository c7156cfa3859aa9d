"""Passages and their vectors on disk: a folder as datasets' save_to_disk writes it, read by row straight from Arrow.

A store for search by words alone has no vectors: no column "embeddings", and dimension 0.

Shapes: n rows, D dimensions.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from ragstone.errors import InputError
from ragstone.knowledge.columns import TextColumn, VectorColumn
from ragstone.knowledge.no_vectors import no_vectors
from ragstone.knowledge.passage_texts import as_passages, as_vectors, by_question, in_places
from ragstone.types import NO_PASSAGE, FloatArray, IntArray, Passage

ROWS_PER_BATCH = 1000
BYTES_PER_SHARD = 500 * 2**20
TEXT_COLUMNS = ("title", "text")
VECTORS = "embeddings"


class ShardWriter:
    """Writes one file of a store. Use as a context manager."""

    def __init__(self, path: Path, dimension: int) -> None:
        """`dimension` 0 is for a store without vectors."""
        self._dimension = dimension
        self._schema = _schema(dimension)
        self._file = path.open("wb")
        self._stream = pa.ipc.new_stream(self._file, self._schema)
        self.bytes = 0

    def __enter__(self) -> ShardWriter:
        return self

    def __exit__(self, *_: object) -> None:
        """Close the file; what was written is on the disk then, and not on its way there."""
        with self._file:
            self._stream.close()
            self._file.flush()
            os.fsync(self._file.fileno())

    def write(self, titles: Sequence[str], texts: Sequence[str], vectors: FloatArray) -> None:
        """Append passages with their vectors [n, D], where D may be 0."""
        for start in range(0, len(titles), ROWS_PER_BATCH):
            rows = slice(start, start + ROWS_PER_BATCH)
            self._write_batch(titles[rows], texts[rows], vectors[rows])

    def _write_batch(self, titles: Sequence[str], texts: Sequence[str], vectors: FloatArray) -> None:
        columns = [pa.array(titles, pa.string()), pa.array(texts, pa.string())]
        if self._dimension:
            offsets = np.arange(0, (len(vectors) + 1) * self._dimension, self._dimension, dtype=np.int32)
            values = np.ascontiguousarray(vectors, dtype=np.float32).reshape(-1)
            columns.append(pa.ListArray.from_arrays(offsets, values))
        batch = pa.record_batch(columns, self._schema)
        self._stream.write_batch(batch)
        self.bytes += batch.nbytes


class PassageWriter:
    """Writes a store row by row, in shards, as the vectors are made. Use as a context manager."""

    def __init__(self, folder: Path, dimension: int, bytes_per_shard: int = BYTES_PER_SHARD) -> None:
        folder.mkdir(parents=True)
        self._folder = folder
        self._dimension = dimension
        self._bytes_per_shard = bytes_per_shard
        self._shards: list[Path] = []
        self._shard: ShardWriter | None = None
        self.count = 0

    def __enter__(self) -> PassageWriter:
        return self

    def __exit__(self, error_type: type[BaseException] | None, *_: object) -> None:
        self._end_shard()
        if error_type is None:
            self._finish()

    def write_passages(self, passages: Sequence[Passage], vectors: FloatArray | None = None) -> None:
        """Append passages with their vectors [n, D], or without in a store of none."""
        if vectors is None:
            vectors = np.empty((len(passages), 0), dtype=np.float32)
        self.write([passage.title for passage in passages], [passage.text for passage in passages], vectors)

    def write(self, titles: Sequence[str], texts: Sequence[str], vectors: FloatArray) -> None:
        """As write_passages."""
        for start in range(0, len(titles), ROWS_PER_BATCH):
            rows = slice(start, start + ROWS_PER_BATCH)
            self._open_shard().write(titles[rows], texts[rows], vectors[rows])
            self.count += len(titles[rows])

    def _open_shard(self) -> ShardWriter:
        """The shard that is written now, or a new one where that is full."""
        if self._shard is None or self._shard.bytes >= self._bytes_per_shard:
            self._end_shard()
            self._shards.append(self._folder / f"data-{len(self._shards):05d}.arrow")
            self._shard = ShardWriter(self._shards[-1], self._dimension)
        return self._shard

    def _end_shard(self) -> None:
        if self._shard is not None:
            self._shard.__exit__()
            self._shard = None

    def _finish(self) -> None:
        """Name the shards after their number, which is known now."""
        names = shard_names(len(self._shards))
        for path, name in zip(self._shards, names, strict=True):
            path.rename(self._folder / name)
        describe_shards(self._folder, names, self.count, self._dimension)


def shard_names(number: int) -> list[str]:
    """What datasets' save_to_disk calls `number` shards."""
    return [f"data-{i:05d}-of-{number:05d}.arrow" for i in range(number)]


def describe_shards(folder: Path, names: Sequence[str], count: int, dimension: int) -> None:
    """Make a store of the shards `names` in `folder`: write the two JSON files that datasets' load_from_disk expects.

    Args:
        folder: where the shards are.
        names: their file names, in order.
        count: rows in all of them.
        dimension: D of the vectors; 0 where there are none.
    """
    digest = hashlib.sha256(json.dumps([list(names), count, dimension]).encode()).hexdigest()[:16]
    state: dict[str, Any] = {
        "_data_files": [{"filename": name} for name in names],
        "_fingerprint": digest,
        "_format_columns": None,
        "_format_kwargs": {},
        "_format_type": None,
        "_output_all_columns": False,
        "_split": None,
    }
    (folder / "state.json").write_text(json.dumps(state, indent=2) + "\n", encoding="utf-8")
    info = {"citation": "", "description": "", "features": _features(dimension), "homepage": "", "license": ""}
    (folder / "dataset_info.json").write_text(json.dumps(info, indent=2) + "\n", encoding="utf-8")


class PassageStore:
    """An opened store: rows are read from the memory map when they are asked for, nothing is loaded."""

    def __init__(self, folder: Path) -> None:
        """Open the store in `folder`.

        Raises:
            InputError: it is no folder of save_to_disk with the columns title, text and, if it has them, embeddings.
        """
        self.folder = folder
        self.maps_vectors = True
        self._batches = [batch for path in _shard_paths(folder) for batch in _map_batches(path)]
        if not self._batches:
            raise InputError(f"The knowledge source {folder} holds no passages; build it again.")
        self._starts = np.cumsum([0, *(batch.num_rows for batch in self._batches)])
        self._text_columns: dict[int, tuple[TextColumn, TextColumn]] = {}
        self._vector_columns: dict[int, VectorColumn] = {}
        self.has_vectors = all(VECTORS in batch.schema.names for batch in self._batches)
        """Whether all passages have one."""
        self.dimension = self._vectors_of(0).matrix.shape[1] if self.has_vectors else 0

    def __len__(self) -> int:
        return int(self._starts[-1])

    def passages(self, rows: npt.ArrayLike) -> list[Passage]:
        """The passages in `rows` (from 0), in that order."""
        return as_passages(rows, self.text_bytes(rows))

    def passage_rows(self, ids: IntArray) -> list[list[Passage]]:
        """The passages of `ids` [B, N], NO_PASSAGE where the id is -1."""
        return by_question(in_places(ids, self.passages, NO_PASSAGE), ids)

    def text_bytes(self, rows: npt.ArrayLike) -> list[memoryview]:
        """Title and text of each of `rows` in turn, as the bytes of their UTF-8. A missing one is empty."""
        found: list[memoryview] = []
        for number, offset in self._places(rows):
            titles, texts = self._texts_of(number)
            found += (titles[offset], texts[offset])
        return found

    def vector_bytes(self, rows: npt.ArrayLike) -> list[memoryview]:
        """The vector of each of `rows`, as the bytes of its D numbers in float32."""
        return [self._vectors_of(number)[offset] for number, offset in self._places(rows)]

    def vectors(self, rows: npt.ArrayLike) -> FloatArray:
        """Vectors [n, D] of `rows`, in that order."""
        return as_vectors(self.vector_bytes(rows), self.dimension)

    def vector_chunks(self, first: int = 0, last: int | None = None) -> Iterator[FloatArray]:
        """The vectors of rows `first` to before `last`, all where not said, in order, as views [*, D] of the map."""
        last = len(self) if last is None else last
        for number in range(len(self._batches)):
            start = int(self._starts[number])
            chunk = slice(max(0, first - start), max(0, last - start))
            if chunk.start < self._batches[number].num_rows and chunk.start < chunk.stop:
                yield self._vectors_of(number).matrix[chunk].astype(np.float32, copy=False)

    def check_texts(self) -> int:
        """Read every title and text; the number of passages without text.

        Raises:
            InputError: a shard with text that is not UTF-8, or with offsets that point outside of it.
        """
        empty = 0
        for number, batch in enumerate(self._batches):
            try:
                batch.validate(full=True)
            except pa.ArrowInvalid as error:
                rows = f"rows {self._starts[number]} to {self._starts[number + 1] - 1}"
                raise InputError(
                    f"{self.folder} is damaged in {rows} ({error}); build the knowledge source again."
                ) from error
            lengths = pc.fill_null(pc.binary_length(batch.column("text")), 0)
            empty += int(pc.sum(pc.equal(lengths, 0)).as_py())
        return empty

    def _places(self, rows: npt.ArrayLike) -> Iterator[tuple[int, int]]:
        """The number of the batch that holds each of `rows`, and its row there."""
        rows = np.asarray(rows, dtype=np.int64)
        numbers = np.searchsorted(self._starts, rows, side="right") - 1
        return zip(numbers.tolist(), (rows - self._starts[numbers]).tolist(), strict=True)

    def _texts_of(self, number: int) -> tuple[TextColumn, TextColumn]:
        """Titles and texts of a batch. They are kept for the next time."""
        columns = self._text_columns.get(number)
        if columns is None:
            batch = self._batches[number]
            columns = self._text_columns[number] = (TextColumn(batch.column("title")), TextColumn(batch.column("text")))
        return columns

    def _vectors_of(self, number: int) -> VectorColumn:
        """The vectors of a batch. Views are kept for the next time."""
        column = self._vector_columns.get(number)
        if column is None:
            if not self.has_vectors:
                raise InputError(no_vectors(self.folder))
            column = VectorColumn(as_matrix(self._batches[number].column(VECTORS), self.folder))
            # What can be written is a copy, of which memory has no room for many.
            if not column.matrix.flags.writeable:
                self._vector_columns[number] = column
        return column


def as_matrix(column: Any, folder: Path) -> npt.NDArray[np.floating[Any]]:
    """A list column as a matrix, without a copy where no value is missing."""
    rows = len(column)
    flat = column.flatten()
    # Arrow's own way to NumPy imports pandas first, where that is installed.
    values: npt.NDArray[Any] = flat.to_numpy(zero_copy_only=False) if flat.null_count else np.from_dlpack(flat)
    if rows == 0 or not len(values) or len(values) % rows or column.null_count:
        raise InputError(f"The vectors in {folder} are not all of one length; build the knowledge source again.")
    return values.reshape(rows, -1)


def _shard_paths(folder: Path) -> list[Path]:
    state_path = folder / "state.json"
    if not state_path.is_file():
        raise InputError(
            f"{folder} is not a knowledge source: it has no state.json; give the folder that ragstone build-knowledge "
            "wrote, or the my_knowledge_dataset folder in it."
        )
    try:
        names = [entry["filename"] for entry in json.loads(state_path.read_text(encoding="utf-8"))["_data_files"]]
    except (ValueError, KeyError, TypeError) as error:
        raise InputError(f"{state_path} is damaged; build the knowledge source again.") from error
    return [folder / name for name in names]


def _map_batches(path: Path) -> list[Any]:
    try:
        reader = pa.ipc.open_stream(pa.memory_map(str(path)))
        missing = set(TEXT_COLUMNS) - set(reader.schema.names)
        if missing:
            raise InputError(
                f"{path} has no column {', '.join(sorted(missing))}; give a source with title, text and, for search by "
                "vectors, embeddings."
            )
        return [batch for batch in reader if batch.num_rows]
    except (OSError, pa.ArrowInvalid) as error:
        raise InputError(f"{path} cannot be read ({error}); build the knowledge source again.") from error


def _features(dimension: int) -> dict[str, Any]:
    """The columns in the words of datasets' Features."""
    string = {"dtype": "string", "_type": "Value"}
    vector = {"feature": {"dtype": "float32", "_type": "Value"}, "_type": "List"}
    return {"title": string, "text": string, **({VECTORS: vector} if dimension else {})}


def _schema(dimension: int) -> Any:
    fields: list[tuple[str, Any]] = [("title", pa.string()), ("text", pa.string())]
    if dimension:
        fields.append((VECTORS, pa.list_(pa.float32())))
    return pa.schema(fields, metadata={"huggingface": json.dumps({"info": {"features": _features(dimension)}})})
