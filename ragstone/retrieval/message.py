"""What a retriever found, as bytes that travel between processes and hosts, and back.

A message is: B, N, D as int64; ids [B, N] int64; vectors [B, N, D] float32; the lengths in bytes of title and text of
each passage [B, N, 2] int32; then titles and texts in UTF-8, one behind the other.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import numpy.typing as npt

from ragstone.types import Passage, Retrieved

Message = npt.NDArray[np.uint8]


def encode(found: Retrieved) -> Message:
    """The message that `found` becomes."""
    texts = [part.encode() for row in found.passages for passage in row for part in (passage.title, passage.text)]
    parts = [
        np.array(found.vectors.shape, dtype=np.int64),
        found.ids,
        found.vectors,
        np.array([len(text) for text in texts], dtype=np.int32),
        np.frombuffer(b"".join(texts), dtype=np.uint8),
    ]
    return np.concatenate([np.ascontiguousarray(part).reshape(-1).view(np.uint8) for part in parts])


def decode(message: Message) -> Retrieved:
    """What was found, from its message."""
    offset = 0

    def take(count: int, dtype: type[np.generic]) -> npt.NDArray[np.generic]:
        nonlocal offset
        size = count * np.dtype(dtype).itemsize
        values = message[offset : offset + size].view(dtype)
        offset += size
        return values

    b, n, d = map(int, take(3, np.int64))
    ids = np.array(take(b * n, np.int64), dtype=np.int64).reshape(b, n)
    vectors = np.array(take(b * n * d, np.float32), dtype=np.float32).reshape(b, n, d)
    lengths = take(2 * b * n, np.int32).tolist()
    texts = _pieces(message[offset:].tobytes(), lengths)
    passages = [[Passage(number, next(texts), next(texts)) for number in row] for row in ids.tolist()]
    return Retrieved(ids, vectors, passages)


def _pieces(text: bytes, lengths: list[int]) -> Iterator[str]:
    """The titles and texts in turn; those of a missing passage are empty."""
    offset = 0
    for length in lengths:
        yield text[offset : offset + length].decode()
        offset += length
