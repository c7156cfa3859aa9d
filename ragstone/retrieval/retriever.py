"""What every retrieval backend does, whatever stands behind it."""

from __future__ import annotations

from typing import Protocol

from ragstone.types import FloatArray, Retrieved


class Retriever(Protocol):
    """Finds passages for question vectors. What a backend needs besides goes into its constructor."""

    def retrieve(self, vectors: FloatArray, n_docs: int) -> Retrieved:
        """The `n_docs` nearest passages of each question vector of `vectors` [B, D] float32, best first.

        Where the source holds fewer, the remaining slots carry id -1 and the empty passage.
        """

    def close(self) -> None:
        """Let go of what the backend holds."""
