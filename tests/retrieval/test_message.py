"""Retrieved passages as bytes and back."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from ragstone.retrieval.message import decode, encode
from ragstone.types import NO_PASSAGE, Passage, Retrieved

PASSAGES = st.one_of(
    st.just(NO_PASSAGE),
    st.builds(Passage, st.integers(0, 2**40), st.text(max_size=9), st.text(max_size=20)),
)


@given(b=st.integers(0, 3), n=st.integers(1, 4), d=st.integers(1, 5), data=st.data())
def test_what_comes_out_is_what_went_in(b: int, n: int, d: int, data: st.DataObject) -> None:
    passages = [[data.draw(PASSAGES) for _ in range(n)] for _ in range(b)]
    ids = np.array([[passage.id for passage in row] for row in passages], dtype=np.int64).reshape(b, n)
    vectors = np.random.default_rng(0).normal(size=(b, n, d)).astype(np.float32)
    found = decode(encode(Retrieved(ids, vectors, passages)))
    assert found.passages == passages
    np.testing.assert_array_equal(found.ids, ids)
    np.testing.assert_array_equal(found.vectors, vectors)
    assert found.vectors.shape == (b, n, d)
    assert found.ids.flags.writeable and found.vectors.flags.writeable
