"""Passages and their vectors on disk: a folder as datasets' save_to_disk writes it, read by row straight from Arrow.

Shapes: n rows, D dimensions.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from ragstone.errors import InputError
from ragstone.types import FloatArray, Passage

ROWS_PER_BATCH = 1000
BYTES_PER_SHARD = 500 * 2**20
COLUMNS = ("title", "text", "embeddings")


class PassageWriter:
    """Writes a store row by row, in shards, as the vectors are made. Use as a context manager."""

    def __init__(self, folder: Path, dimension: int, bytes_per_shard: int = BYTES_PER_SHARD) -> None:
        folder.mkdir(parents=True)
        self._folder = folder
        self._dimension = dimension
        self._bytes_per_shard = bytes_per_shard
        self._schema = _schema()
        self._shards: list[str] = []
        self._stream: Any = None
        self._shard_bytes = 0
        self.count = 0

    def __enter__(self) -> PassageWriter:
        return self

    def __exit__(self, error_type: type[BaseException] | None, *_: object) -> None:
        self._end_shard()
        if error_type is None:
            self._finish()

    def write(self, titles: Sequence[str], texts: Sequence[str], vectors: FloatArray) -> None:
        """Append passages with their vectors [n, D]."""
        for start in range(0, len(titles), ROWS_PER_BATCH):
            rows = slice(start, start + ROWS_PER_BATCH)
            self._write_batch(titles[rows], texts[rows], vectors[rows])

    def _write_batch(self, titles: Sequence[str], texts: Sequence[str], vectors: FloatArray) -> None:
        if self._stream is None or self._shard_bytes >= self._bytes_per_shard:
            self._begin_shard()
        offsets = np.arange(0, (len(vectors) + 1) * self._dimension, self._dimension, dtype=np.int32)
        embeddings = pa.ListArray.from_arrays(offsets, np.ascontiguousarray(vectors, dtype=np.float32).reshape(-1))
        batch = pa.record_batch([pa.array(titles, pa.string()), pa.array(texts, pa.string()), embeddings], self._schema)
        self._stream.write_batch(batch)
        self._shard_bytes += batch.nbytes
        self.count += len(titles)

    def _begin_shard(self) -> None:
        self._end_shard()
        name = f"data-{len(self._shards):05d}.arrow"
        self._shards.append(name)
        self._stream = pa.ipc.new_stream(str(self._folder / name), self._schema)
        self._shard_bytes = 0

    def _end_shard(self) -> None:
        if self._stream is not None:
            self._stream.close()
            self._stream = None

    def _finish(self) -> None:
        """Give the shards the names and the two JSON files that datasets' load_from_disk expects."""
        total = len(self._shards)
        names = [f"data-{number:05d}-of-{total:05d}.arrow" for number in range(total)]
        for old, new in zip(self._shards, names, strict=True):
            (self._folder / old).rename(self._folder / new)
        digest = hashlib.sha256(json.dumps([names, self.count, self._dimension]).encode()).hexdigest()[:16]
        state: dict[str, Any] = {
            "_data_files": [{"filename": name} for name in names],
            "_fingerprint": digest,
            "_format_columns": None,
            "_format_kwargs": {},
            "_format_type": None,
            "_output_all_columns": False,
            "_split": None,
        }
        (self._folder / "state.json").write_text(json.dumps(state, indent=2) + "\n", encoding="utf-8")
        info = {"citation": "", "description": "", "features": _features(), "homepage": "", "license": ""}
        (self._folder / "dataset_info.json").write_text(json.dumps(info, indent=2) + "\n", encoding="utf-8")


class PassageStore:
    """An opened store: rows are read from the memory map when they are asked for, nothing is loaded."""

    def __init__(self, folder: Path) -> None:
        """Open the store in `folder`.

        Raises:
            InputError: it is no folder of save_to_disk with the columns title, text and embeddings.
        """
        self.folder = folder
        self._batches = [batch for path in _shard_paths(folder) for batch in _map_batches(path)]
        if not self._batches:
            raise InputError(f"The knowledge source {folder} holds no passages; build it again.")
        self._starts = np.cumsum([0, *(batch.num_rows for batch in self._batches)])
        self.dimension = self._batch_vectors(0).shape[1]

    def __len__(self) -> int:
        return int(self._starts[-1])

    def passages(self, rows: npt.ArrayLike) -> list[Passage]:
        """The passages in `rows` (from 0), in that order."""
        return [self._passage(int(row)) for row in np.asarray(rows)]

    def vectors(self, rows: npt.ArrayLike) -> FloatArray:
        """Vectors [n, D] of `rows`, in that order."""
        rows = np.asarray(rows, dtype=np.int64)
        found = np.empty((len(rows), self.dimension), dtype=np.float32)
        numbers = np.searchsorted(self._starts, rows, side="right") - 1
        for number in np.unique(numbers):
            here = numbers == number
            found[here] = self._batch_vectors(int(number))[rows[here] - self._starts[number]]
        return found

    def vector_chunks(self) -> Iterator[FloatArray]:
        """All vectors in order, as views [*, D] of the map."""
        for number in range(len(self._batches)):
            yield self._batch_vectors(number)

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

    def _passage(self, row: int) -> Passage:
        number = int(np.searchsorted(self._starts, row, side="right")) - 1
        batch, offset = self._batches[number], row - int(self._starts[number])
        # A missing title is an empty one, as the reference's script writes it.
        title, text = batch.column("title")[offset].as_py(), batch.column("text")[offset].as_py()
        return Passage(id=row, title=title or "", text=text or "")

    def _batch_vectors(self, number: int) -> FloatArray:
        return _as_matrix(self._batches[number].column("embeddings"), self.folder)


def _as_matrix(column: Any, folder: Path) -> FloatArray:
    """A list column as a matrix, without a copy where it holds float32."""
    rows = len(column)
    values = column.flatten().to_numpy(zero_copy_only=False)
    if rows == 0 or len(values) % rows or column.null_count:
        raise InputError(f"The vectors in {folder} are not all of one length; build the knowledge source again.")
    return values.astype(np.float32, copy=False).reshape(rows, -1)


def _shard_paths(folder: Path) -> list[Path]:
    state_path = folder / "state.json"
    if not state_path.is_file():
        raise InputError(
            f"{folder} is no knowledge source: it has no state.json; --passages_path takes the folder that "
            "ragstone build-knowledge wrote, or the my_knowledge_dataset folder in it."
        )
    try:
        names = [entry["filename"] for entry in json.loads(state_path.read_text(encoding="utf-8"))["_data_files"]]
    except (ValueError, KeyError, TypeError) as error:
        raise InputError(f"{state_path} is damaged; build the knowledge source again.") from error
    return [folder / name for name in names]


def _map_batches(path: Path) -> list[Any]:
    try:
        reader = pa.ipc.open_stream(pa.memory_map(str(path)))
        missing = set(COLUMNS) - set(reader.schema.names)
        if missing:
            raise InputError(f"{path} has no column {', '.join(sorted(missing))}; a source has {', '.join(COLUMNS)}.")
        return [batch for batch in reader if batch.num_rows]
    except (OSError, pa.ArrowInvalid) as error:
        raise InputError(f"{path} cannot be read ({error}); build the knowledge source again.") from error


def _features() -> dict[str, Any]:
    """The columns in the words of datasets' Features."""
    string = {"dtype": "string", "_type": "Value"}
    vector = {"feature": {"dtype": "float32", "_type": "Value"}, "_type": "List"}
    return {"title": string, "text": string, "embeddings": vector}


def _schema() -> Any:
    fields = [("title", pa.string()), ("text", pa.string()), ("embeddings", pa.list_(pa.float32()))]
    return pa.schema(fields, metadata={"huggingface": json.dumps({"info": {"features": _features()}})})
