"""Retrieved passages as bytes that travel between processes and hosts, and back.

A message is: B, N, D as int64; ids [B, N] int64; vectors [B, N, D] float32; the lengths in bytes of title and text of
each passage [B, N, 2] int32; then titles and texts in UTF-8, one behind the other.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import numpy.typing as npt

from ragstone.knowledge.row_store import RowStore
from ragstone.types import IntArray, Passage, Retrieved

Message = npt.NDArray[np.uint8]


def encode(ids: IntArray, store: RowStore) -> Message:
    """The message of the passages `ids` [B, N], empty ones where the id is -1.

    Vectors and texts go from the store's memory map to their place in the message, without becoming objects.
    """
    valid = ids >= 0
    rows = ids[valid]
    texts = store.text_bytes(rows)
    lengths = np.zeros((*ids.shape, 2), dtype=np.int32)
    lengths[valid] = np.fromiter(map(len, texts), dtype=np.int32, count=len(texts)).reshape(-1, 2)
    shape = np.array([*ids.shape, store.dimension], dtype=np.int64)
    size = 4 * ids.size * store.dimension
    start = shape.nbytes + ids.nbytes
    message = np.empty(start + size + lengths.nbytes + int(lengths.sum()), dtype=np.uint8)
    message[: shape.nbytes] = shape.view(np.uint8)
    message[shape.nbytes : start] = np.ascontiguousarray(ids).reshape(-1).view(np.uint8)
    vectors = message[start : start + size].view(np.float32).reshape(*ids.shape, store.dimension)
    if valid.all():
        store.vectors(rows, out=vectors.reshape(-1, store.dimension))
    else:
        vectors[~valid] = 0
        vectors[valid] = store.vectors(rows)
    start += size
    message[start : start + lengths.nbytes] = lengths.reshape(-1).view(np.uint8)
    message[start + lengths.nbytes :] = np.frombuffer(b"".join(texts), dtype=np.uint8)
    return message


def decode(message: Message) -> Retrieved:
    """What was found, from its message. The arrays are parts of the message, or copies where that must not change."""
    offset = 0

    def take(count: int, dtype: type[np.generic]) -> npt.NDArray[np.generic]:
        nonlocal offset
        size = count * np.dtype(dtype).itemsize
        values = message[offset : offset + size].view(dtype)
        offset += size
        return values if message.flags.writeable else values.copy()

    b, n, d = map(int, take(3, np.int64))
    ids = take(b * n, np.int64).astype(np.int64, copy=False).reshape(b, n)
    vectors = take(b * n * d, np.float32).astype(np.float32, copy=False).reshape(b, n, d)
    lengths = take(2 * b * n, np.int32).tolist()
    texts = _pieces(message.data[offset:], lengths)
    passages = [[Passage(number, next(texts), next(texts)) for number in row] for row in ids.tolist()]
    return Retrieved(ids, vectors, passages)


def _pieces(text: memoryview, lengths: list[int]) -> Iterator[str]:
    """The titles and texts in turn; those of a missing passage are empty."""
    offset = 0
    for length in lengths:
        yield str(text[offset : offset + length], "utf-8")
        offset += length
