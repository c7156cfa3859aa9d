"""Requests to retrieval workers, and what was retrieved, as bytes that travel between processes and hosts, and back.

Shapes: B questions, N passages per question, D dimensions.

A request is: number of its kind, N, length in bytes of what follows, length in bytes of the version or -1 for any, as
int64; question vectors [B, D] float32, or ids [B, N] int64; then the version of the source in UTF-8.

A message of passages is: B, N, D as int64; ids [B, N] int64; vectors [B, N, D] float32; the lengths in bytes of title
and text of each passage [B, N, 2] int32; then titles and texts in UTF-8, one behind the other.
"""

from __future__ import annotations

import itertools
import struct
from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np
import numpy.typing as npt

from ragstone.knowledge.passage_texts import as_passages, by_question, in_places
from ragstone.knowledge.row_store import RowStore
from ragstone.types import FloatArray, IntArray, Retrieved

Message = npt.NDArray[np.uint8]
Kind = Literal["retrieve", "search", "fetch"]
"""Of a request: the passages that a search finds; their scores and ids alone; the passages of given ids."""
KINDS: tuple[Kind, ...] = get_args(Kind)
HEAD = struct.Struct("<4q")
NO_MANIFEST = ""
"""The version of a source without a manifest."""
ANY = -1
"""Instead of the length of a version."""


@dataclass(frozen=True)
class Request:
    """What a worker is asked."""

    kind: Kind
    version: str | None
    """Of the source that must be the worker's, NO_MANIFEST where it has none; None: any."""
    n_docs: int
    """N"""
    payload: bytes | bytearray | memoryview
    """Question vectors, or ids of passages; see the module."""

    def encode(self) -> bytes:
        """As bytes."""
        version = (self.version or "").encode()
        size = ANY if self.version is None else len(version)
        head = HEAD.pack(KINDS.index(self.kind), self.n_docs, len(self.payload), size)
        return b"".join((head, self.payload, version))

    @classmethod
    def decode(cls, message: bytearray) -> Request:
        """From its bytes, of which the payload stays a part."""
        kind, n_docs, size, version_size = HEAD.unpack_from(message)
        end = HEAD.size + size
        version = None if version_size == ANY else message[end : end + version_size].decode()
        return cls(KINDS[kind], version, n_docs, memoryview(message)[HEAD.size : end])

    def questions(self, dimension: int) -> FloatArray:
        """Question vectors [B, `dimension`]."""
        return np.frombuffer(self.payload, np.float32).reshape(-1, dimension)

    @property
    def ids(self) -> IntArray:
        """Ids of passages [B, N]."""
        return np.frombuffer(self.payload, np.int64).reshape(-1, self.n_docs)


def encode(ids: IntArray, store: RowStore) -> Message:
    """The message of the passages `ids` [B, N], empty ones where the id is -1.

    Vectors and texts go from the store's memory map to their place in the message, without becoming objects.
    """
    shape = np.array([*ids.shape, store.dimension], dtype=np.int64)
    vectors = in_places(ids, store.vector_bytes, memoryview(bytes(4 * store.dimension)))
    valid = ids >= 0
    texts = store.text_bytes(ids[valid])
    lengths = np.zeros((*ids.shape, 2), dtype=np.int32)
    lengths[valid] = np.fromiter(map(len, texts), dtype=np.int32, count=len(texts)).reshape(-1, 2)
    pieces = [shape.data, np.ascontiguousarray(ids).data, *vectors, lengths.data, *texts]
    return np.frombuffer(bytearray().join(pieces), dtype=np.uint8)


def decode(message: Message) -> Retrieved:
    """What was found, from its message. The arrays are parts of the message, or copies where that must not change."""
    offset, data = 0, message.data

    def take(count: int, dtype: type[np.generic]) -> npt.NDArray[np.generic]:
        nonlocal offset
        size = count * np.dtype(dtype).itemsize
        values = message[offset : offset + size].view(dtype)
        offset += size
        return values if message.flags.writeable else values.copy()

    b, n, d = map(int, take(3, np.int64))
    ids = take(b * n, np.int64).astype(np.int64, copy=False).reshape(b, n)
    vectors = take(b * n * d, np.float32).astype(np.float32, copy=False).reshape(b, n, d)
    lengths = take(2 * b * n, np.int32)
    ends = (offset + np.cumsum([0, *lengths.tolist()])).tolist()
    texts = [data[start:end] for start, end in itertools.pairwise(ends)]
    return Retrieved(ids, vectors, by_question(as_passages(ids.reshape(-1), texts), ids))


def encode_found(scores: FloatArray, ids: IntArray) -> bytes:
    """What a search found, `scores` and `ids` [B, N]: the ids, whose place must be a multiple of 8, and the scores."""
    return ids.astype(np.int64, copy=False).tobytes() + scores.astype(np.float32, copy=False).tobytes()


def decode_found(message: bytearray, questions: int) -> tuple[FloatArray, IntArray]:
    """Scores and ids [B, N] from the message of a search for B `questions`, at least one; they stay parts of it."""
    # 8 bytes of each id, then 4 of each score.
    size = len(message) // 12
    ids, scores = np.frombuffer(message, np.int64, size), np.frombuffer(message, np.float32, size, offset=8 * size)
    return scores.reshape(questions, -1), ids.reshape(questions, -1)
