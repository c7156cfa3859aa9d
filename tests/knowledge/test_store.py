from __future__ import annotations

import json
from pathlib import Path

import datasets
import numpy as np
import pytest

from ragstone.errors import InputError
from ragstone.knowledge.store import ROWS_PER_BATCH, PassageStore, PassageWriter

COUNT, DIMENSION = 2 * ROWS_PER_BATCH + 34, 8
VECTORS = np.random.default_rng(0).standard_normal((COUNT, DIMENSION)).astype(np.float32)
TITLES = [f"title {i}" for i in range(COUNT)]
TEXTS = [f"text {i} é" for i in range(COUNT)]


@pytest.fixture(scope="module", params=[2**30, 60_000], ids=["one shard", "several shards"])
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("store") / "passages"
    with PassageWriter(folder, DIMENSION, bytes_per_shard=request.param) as writer:
        for start in range(0, COUNT, 300):
            rows = slice(start, start + 300)
            writer.write(TITLES[rows], TEXTS[rows], VECTORS[rows])
    return folder


def test_rows_come_back_in_any_order(folder: Path) -> None:
    store = PassageStore(folder)
    assert (len(store), store.dimension) == (COUNT, DIMENSION)
    rows = np.array([COUNT - 1, 0, 299, 300, 1, 0])
    np.testing.assert_array_equal(store.vectors(rows), VECTORS[rows])
    assert [(p.id, p.title, p.text) for p in store.passages(rows)] == [(r, TITLES[r], TEXTS[r]) for r in rows]
    np.testing.assert_array_equal(np.concatenate(list(store.vector_chunks())), VECTORS)
    assert store.vectors([]).shape == (0, DIMENSION)


def test_datasets_opens_it(folder: Path) -> None:
    dataset = datasets.load_from_disk(str(folder))
    assert dataset.column_names == ["title", "text", "embeddings"]
    assert (len(dataset), dataset[5]["title"], dataset[COUNT - 1]["text"]) == (COUNT, TITLES[5], TEXTS[-1])
    assert dataset.features["embeddings"] == datasets.List(datasets.Value("float32"))
    np.testing.assert_array_equal(np.array(dataset.with_format("numpy")["embeddings"]), VECTORS)
    assert len(list(folder.glob("*.arrow"))) == len(json.loads((folder / "state.json").read_text())["_data_files"])


def test_chunks_are_views_of_the_map(folder: Path) -> None:
    assert all(not chunk.flags.owndata and not chunk.flags.writeable for chunk in PassageStore(folder).vector_chunks())


def test_shards_are_filled_one_after_the_other(tmp_path: Path) -> None:
    with PassageWriter(tmp_path / "passages", DIMENSION, bytes_per_shard=60_000) as writer:
        writer.write(TITLES, TEXTS, VECTORS)
    names = sorted(path.name for path in (tmp_path / "passages").glob("*.arrow"))
    assert names == [f"data-{i:05d}-of-{len(names):05d}.arrow" for i in range(len(names))]
    assert len(names) > 1


@pytest.mark.parametrize("kind", ["float16", "float32", "float64"])
def test_a_dataset_of_another_maker_opens(tmp_path: Path, kind: str) -> None:
    columns = {"text": TEXTS[:50], "title": [None, *TITLES[1:50]], "embeddings": VECTORS[:50].astype(kind).tolist()}
    features = datasets.Features(
        text=datasets.Value("large_string"),
        title=datasets.Value("string"),
        embeddings=datasets.List(datasets.Value(kind)),
    )
    datasets.Dataset.from_dict(columns, features=features).save_to_disk(tmp_path / "passages", num_shards=3)
    store = PassageStore(tmp_path / "passages")
    expected = VECTORS[:50].astype(kind).astype(np.float32)
    np.testing.assert_array_equal(store.vectors(np.arange(50)), expected, strict=True)
    np.testing.assert_array_equal(np.concatenate(list(store.vector_chunks())), expected, strict=True)
    assert [passage.title for passage in store.passages([0, 49])] == ["", TITLES[49]]


def test_folders_that_are_no_store(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="is not a knowledge source: it has no state.json".replace(".", r"\.")):
        PassageStore(tmp_path)
    (tmp_path / "state.json").write_text("{", encoding="utf-8")
    with pytest.raises(InputError, match=r"state\.json is damaged"):
        PassageStore(tmp_path)
    datasets.Dataset.from_dict({"text": ["a"], "title": ["b"]}).save_to_disk(tmp_path / "other")
    store = PassageStore(tmp_path / "other")
    assert (store.has_vectors, store.dimension, store.passages([0])[0].text) == (False, 0, "a")
    for read in (lambda: store.vectors([0]), lambda: list(store.vector_chunks())):
        with pytest.raises(InputError, match="so it can be searched by words alone; take --retriever bm25"):
            read()
    datasets.Dataset.from_dict({"text": ["a"]}).save_to_disk(tmp_path / "untitled")
    with pytest.raises(InputError, match="has no column title"):
        PassageStore(tmp_path / "untitled")
    uneven = {"text": ["a", "b"], "title": ["c", "d"], "embeddings": [[1.0], [1.0, 2.0]]}
    datasets.Dataset.from_dict(uneven).save_to_disk(tmp_path / "uneven")
    with pytest.raises(InputError, match="are not all of one length"):
        PassageStore(tmp_path / "uneven")


def test_a_missing_shard_is_named(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "state.json").write_bytes((folder / "state.json").read_bytes())
    with pytest.raises(InputError, match=r"data-00000-of-\d+\.arrow cannot be read"):
        PassageStore(tmp_path)
