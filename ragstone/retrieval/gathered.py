"""Retrieval on the first process: the others send their question vectors there and get the passages back.

Shapes: B questions of a process, N passages per question, D dimensions.
"""

from __future__ import annotations

import numpy as np

from ragstone.processes.group import ProcessGroup
from ragstone.retrieval.message import decode, encode
from ragstone.retrieval.retriever import Retriever
from ragstone.types import FloatArray, Retrieved

SHAPE_BYTES = 24


class GatheredRetriever:
    """Searches for all processes at once. All of them must retrieve at the same time, with any number of questions."""

    def __init__(self, processes: ProcessGroup, inner: Retriever | None) -> None:
        """`inner` is what the first process searches with; None on the others."""
        self._processes = processes
        self._inner = inner

    def retrieve(self, vectors: FloatArray, n_docs: int) -> Retrieved:
        """See Retriever.retrieve."""
        if self._inner is None:
            shape = np.array([*vectors.shape, n_docs], dtype=np.int64)
            question = np.ascontiguousarray(vectors, dtype=np.float32).reshape(-1)
            self._processes.send(np.concatenate([shape.view(np.uint8), question.view(np.uint8)]), to=0)
            return decode(self._processes.receive(0))
        asked = [(np.asarray(vectors, dtype=np.float32), n_docs)]
        for rank in range(1, self._processes.place.size):
            asked.append(_request(self._processes.receive(rank)))
        found = self._inner.retrieve(np.concatenate([part for part, _ in asked]), max(n for _, n in asked))
        start = len(vectors)
        for rank, (part, n) in enumerate(asked[1:], 1):
            self._processes.send(encode(_rows(found, start, start + len(part), n)), to=rank)
            start += len(part)
        return _rows(found, 0, len(vectors), n_docs)

    def close(self) -> None:
        """See Retriever.close."""
        if self._inner is not None:
            self._inner.close()


def _request(message: np.ndarray) -> tuple[FloatArray, int]:
    b, d, n_docs = map(int, message[:SHAPE_BYTES].view(np.int64))
    return message[SHAPE_BYTES:].view(np.float32).reshape(b, d), n_docs


def _rows(found: Retrieved, first: int, last: int, n_docs: int) -> Retrieved:
    """What was found for the questions `first` to before `last`, the best `n_docs` of each."""
    rows = slice(first, last)
    passages = [row[:n_docs] for row in found.passages[rows]]
    return Retrieved(found.ids[rows, :n_docs], found.vectors[rows, :n_docs], passages)
