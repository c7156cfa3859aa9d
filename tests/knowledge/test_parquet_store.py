"""Passages in parquet files, held against the same passages in a folder of save_to_disk."""

from __future__ import annotations

import itertools
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from ragstone.errors import InputError
from ragstone.knowledge import parquet_store
from ragstone.knowledge.parquet_store import ParquetStore
from ragstone.knowledge.row_store import open_store
from ragstone.knowledge.store import PassageStore, PassageWriter
from ragstone.retrieval.message import decode, encode

COUNT, DIMENSION = 103, 8
VECTORS = np.random.default_rng(0).standard_normal((COUNT, DIMENSION)).astype(np.float32)
TITLES = [f"title {i}" for i in range(COUNT)]
TEXTS = [f"text {i} é" for i in range(COUNT)]


def write_parquet(folder: Path, files: int, group: int, kind: Any = None, embeddings: bool = True) -> Path:
    """The passages in files of unequal length, as wiki_dpr has them: id from 1, text, title, embeddings."""
    folder.mkdir(parents=True)
    bounds = np.linspace(0, COUNT, files + 1).astype(int)
    for number, (start, end) in enumerate(itertools.pairwise(bounds)):
        columns: dict[str, Any] = {
            "id": [str(row + 1) for row in range(start, end)],
            "text": TEXTS[start:end],
            "title": [None if row == 7 else TITLES[row] for row in range(start, end)],
        }
        if embeddings:
            columns["embeddings"] = pa.array(VECTORS[start:end].tolist(), kind or pa.list_(pa.float32()))
        pq.write_table(pa.table(columns), folder / f"train-{number:05d}-of-{files:05d}.parquet", row_group_size=group)
    return folder


@pytest.fixture(params=[(1, 1000), (4, 10)], ids=["one group", "many groups"])
def folder(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    return write_parquet(tmp_path / "nq", *request.param)


def test_rows_are_those_of_the_other_store(folder: Path, tmp_path: Path) -> None:
    with PassageWriter(tmp_path / "arrow", DIMENSION) as writer:
        writer.write([title if row != 7 else "" for row, title in enumerate(TITLES)], TEXTS, VECTORS)
    mine, other = open_store(folder), open_store(tmp_path / "arrow")
    assert isinstance(mine, ParquetStore) and isinstance(other, PassageStore)
    assert (len(mine), mine.dimension) == (len(other), other.dimension) == (COUNT, DIMENSION)
    rows = np.array([COUNT - 1, 0, 25, 26, 25, 7, 51])
    assert mine.passages(rows) == other.passages(rows)
    np.testing.assert_array_equal(mine.vectors(rows), VECTORS[rows])
    assert mine.vectors([]).shape == (0, DIMENSION) and mine.passages([]) == []
    for first, last in ((0, None), (0, 0), (5, 60), (99, COUNT)):
        chunks = [np.empty((0, DIMENSION)), *mine.vector_chunks(first, last)]
        np.testing.assert_array_equal(np.concatenate(chunks), VECTORS[first:last])
    assert mine.check_texts() == other.check_texts() == 0
    ids = np.array([[3, -1], [100, 7]])
    theirs, found = decode(encode(ids, other)), decode(encode(ids, mine))
    assert found.passages == theirs.passages
    np.testing.assert_array_equal(found.vectors, theirs.vectors)


def test_a_row_group_is_read_once_and_few_are_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = write_parquet(tmp_path / "nq", 2, 10)
    reads: list[tuple[str, int]] = []
    read = parquet_store._File.read

    def counted(file: Any, group: int, columns: Any) -> Any:
        reads.append((file.path.name, group))
        return read(file, group, columns)

    monkeypatch.setattr(parquet_store._File, "read", counted)
    store = ParquetStore(folder)
    assert len(reads) == 1
    rows = np.array([95, 12, 94, 13, 12])
    store.vectors(rows)
    store.passages(rows)
    assert len(reads) == 3
    small = ParquetStore(folder, cached_bytes=1)
    del reads[:]
    for rows in ([12, 95], [12, 95]):
        np.testing.assert_array_equal(small.vectors(rows), VECTORS[rows])
    assert len(reads) == 4


def test_a_file_that_no_row_is_asked_of_keeps_its_layout_to_itself(tmp_path: Path) -> None:
    """Opening a large source looks at one number of each file."""
    store = ParquetStore(write_parquet(tmp_path / "nq", 4, 1))
    store.passages([0, COUNT - 1])
    assert sorted(store._files) == [0, 3]


def test_threads_may_read_together(tmp_path: Path) -> None:
    store = ParquetStore(write_parquet(tmp_path / "nq", 4, 3), cached_bytes=2000)

    def read(seed: int) -> bool:
        rows = np.random.default_rng(seed).integers(0, COUNT, 50)
        return bool((store.vectors(rows) == VECTORS[rows]).all()) and store.passages(rows)[0].text == TEXTS[rows[0]]

    with ThreadPoolExecutor(4) as threads:
        assert all(threads.map(read, range(20)))


@pytest.mark.parametrize("kind", [pa.list_(pa.float64()), pa.large_list(pa.float32()), pa.list_(pa.float32(), 8)])
def test_other_types_of_vectors(tmp_path: Path, kind: Any) -> None:
    store = ParquetStore(write_parquet(tmp_path / "nq", 2, 10, kind))
    assert store.vectors([0]).dtype == np.float32
    np.testing.assert_allclose(store.vectors([50, 3]), VECTORS[[50, 3]])


def test_folders_that_cannot_be_used(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="has no column embeddings"):
        open_store(write_parquet(tmp_path / "no_embeddings", 1, 10, embeddings=False))
    folder = write_parquet(tmp_path / "nq", 4, 10)
    (folder / "train-00002-of-00004.parquet").unlink()
    with pytest.raises(
        InputError, match=r"holds 3 parquet files, but train-00000-of-00004.parquet is one of 4; run the do"
    ):
        open_store(folder)
    (folder / "train-00002-of-00004.parquet").write_bytes(b"no parquet")
    with pytest.raises(InputError, match=r"train-00002-of-00004\.parquet cannot be read"):
        open_store(folder)
