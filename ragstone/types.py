"""The nouns that every part shares.

Shapes: B questions, N passages per question, D dimensions.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

FloatArray = npt.NDArray[np.float32]
IntArray = npt.NDArray[np.int64]
BoolArray = npt.NDArray[np.bool_]


class Passage(NamedTuple):
    """A piece of a document, as the retriever finds it and the generator reads it."""

    id: int
    """Its row in the knowledge source; -1 for the empty passage that fills a slot nothing was found for."""
    title: str
    """Title of the document that it comes from."""
    text: str
    """The passage itself, about 100 words."""


NO_PASSAGE = Passage(id=-1, title="", text="")


@dataclass(frozen=True, slots=True)
class Example:
    """A question with the answer that training aims at."""

    question: str
    answer: str


@dataclass(frozen=True)
class Retrieved:
    """What a retriever found for a batch of questions, best first."""

    ids: IntArray
    """[B, N] rows in the knowledge source, -1 where the index gave none."""
    vectors: FloatArray
    """[B, N, D] the passages' vectors, zero where the id is -1."""
    passages: list[list[Passage]]
    """B lists of N passages, NO_PASSAGE where the id is -1."""

    @cached_property
    def mask(self) -> BoolArray:
        """[B, N] true where there is a passage."""
        return self.ids >= 0

    def __len__(self) -> int:
        return len(self.ids)
