"""Retrieved passages as bytes and back."""

from __future__ import annotations

import tempfile
from pathlib import Path

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from ragstone.knowledge.store import PassageStore, PassageWriter
from ragstone.retrieval.message import KINDS, Kind, Request, decode, decode_found, encode, encode_found
from ragstone.types import NO_PASSAGE

ROWS = 7


@given(
    b=st.integers(0, 3),
    n=st.integers(1, 4),
    d=st.integers(1, 5),
    texts=st.lists(st.text(max_size=20), min_size=2 * ROWS, max_size=2 * ROWS),
    frozen=st.booleans(),
    data=st.data(),
)
def test_what_comes_out_is_what_the_store_holds(
    b: int, n: int, d: int, texts: list[str], frozen: bool, data: st.DataObject
) -> None:
    vectors = np.random.default_rng(0).normal(size=(ROWS, d)).astype(np.float32)
    rows = data.draw(st.lists(st.integers(-1, ROWS - 1), min_size=b * n, max_size=b * n))
    ids = np.array(rows, dtype=np.int64).reshape(b, n)
    with tempfile.TemporaryDirectory() as folder:
        with PassageWriter(Path(folder) / "store", d, bytes_per_shard=40) as writer:
            for row in range(ROWS):
                writer.write(texts[row : row + 1], texts[ROWS + row : ROWS + row + 1], vectors[row : row + 1])
        store = PassageStore(Path(folder) / "store")
        message = encode(ids, store)
        message.flags.writeable = not frozen
        found = decode(message)
        expected = [[NO_PASSAGE if row < 0 else store.passages([row])[0] for row in line] for line in ids.tolist()]
    assert found.passages == expected
    np.testing.assert_array_equal(found.ids, ids)
    np.testing.assert_array_equal(found.vectors, np.where(ids[..., None] < 0, 0, vectors[ids]))
    assert found.vectors.shape == (b, n, d)
    assert found.ids.flags.writeable and found.vectors.flags.writeable


@given(b=st.integers(1, 4), n=st.integers(0, 5), seed=st.integers(0, 9))
def test_what_a_search_found(b: int, n: int, seed: int) -> None:
    random = np.random.default_rng(seed)
    scores, ids = random.normal(size=(b, n)).astype(np.float32), random.integers(-1, 2**40, size=(b, n))
    found = decode_found(bytearray(encode_found(scores, ids)), b)
    for array, expected in zip(found, (scores, ids), strict=True):
        np.testing.assert_array_equal(array, expected)
        assert (array.shape, array.dtype) == ((b, n), expected.dtype)
        assert array.flags.writeable


@given(kind=st.sampled_from(KINDS), version=st.none() | st.text(), b=st.integers(1, 4), n=st.integers(1, 5))
def test_requests(kind: Kind, version: str | None, b: int, n: int) -> None:
    """An empty version is one of its own."""
    random = np.random.default_rng(b)
    questions, ids = random.normal(size=(b, 3)).astype(np.float32), random.integers(-1, 2**40, size=(b, n))
    for payload in (questions, ids):
        found = Request.decode(bytearray(Request(kind, version, n, payload.tobytes()).encode()))
        assert (found.kind, found.version, found.n_docs, bytes(found.payload)) == (kind, version, n, payload.tobytes())
        read = found.questions(3) if payload is questions else found.ids
        np.testing.assert_array_equal(read, payload)
        assert read.flags.aligned
