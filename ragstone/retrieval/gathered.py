"""Retrieval on the first process: the others send their question vectors there and get the passages back.

Shapes: B questions of a process, N passages per question, D dimensions.
"""

from __future__ import annotations

import numpy as np

from ragstone.processes.group import ProcessGroup
from ragstone.retrieval.local import LocalRetriever, fetch
from ragstone.retrieval.message import decode, encode
from ragstone.types import FloatArray, Retrieved

SHAPE_BYTES = 24


class GatheredRetriever:
    """Searches for all processes at once. All of them must retrieve at the same time, with any number of questions."""

    def __init__(self, processes: ProcessGroup, inner: LocalRetriever | None) -> None:
        """`inner` is what the first process searches with; None on the others."""
        self._processes = processes
        self._inner = inner

    def retrieve(self, vectors: FloatArray, n_docs: int) -> Retrieved:
        """See Retriever.retrieve. Two exchanges for each process: the questions', and the passages'."""
        self._processes.advance()
        if self._inner is None:
            shape = np.array([*vectors.shape, n_docs], dtype=np.int64)
            question = np.ascontiguousarray(vectors, dtype=np.float32).reshape(-1)
            self._processes.send(np.concatenate([shape.view(np.uint8), question.view(np.uint8)]), to=0)()
            self._processes.advance()
            return decode(self._processes.receive(0))
        asked = [(np.asarray(vectors, dtype=np.float32), n_docs)]
        for rank in range(1, self._processes.place.size):
            asked.append(_request(self._processes.receive(rank)))
        ids = self._inner.search(np.concatenate([part for part, _ in asked]), max(n for _, n in asked))
        own, *others = np.split(ids, np.cumsum([len(part) for part, _ in asked])[:-1])
        self._processes.advance()
        # The others go on with their passages while this process fetches its own.
        sent = [
            self._processes.send(encode(rows[:, :n], self._inner.source.store), to=rank)
            for rank, (rows, (_, n)) in enumerate(zip(others, asked[1:], strict=True), 1)
        ]
        found = fetch(own[:, :n_docs], self._inner.source.store)
        for wait in sent:
            wait()
        return found

    def close(self) -> None:
        """See Retriever.close."""
        if self._inner is not None:
            self._inner.close()


def _request(message: np.ndarray) -> tuple[FloatArray, int]:
    b, d, n_docs = map(int, message[:SHAPE_BYTES].view(np.int64))
    return message[SHAPE_BYTES:].view(np.float32).reshape(b, d), n_docs
