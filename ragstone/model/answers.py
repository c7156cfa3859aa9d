"""What models answer with: text, score, and the passages behind it."""

from __future__ import annotations

from dataclasses import dataclass

from ragstone.types import Passage


@dataclass(frozen=True)
class ScoredPassage:
    """A retrieved passage with what the model thinks of it."""

    passage: Passage
    score: float
    """What the retriever ranks and weighs it by: question vector · passage vector, or as --retriever says."""
    prior: float
    """p(z|x): its share before the answer is known."""
    posterior: float
    """p(z|x,y): its share in the answer; nan where there is no answer."""


@dataclass(frozen=True)
class Answer:
    """An answer with the passages it was read from, in the order of retrieval."""

    text: str
    score: float
    """log p(y|x), natural logarithm."""
    passages: tuple[ScoredPassage, ...]
    labels: tuple[int, ...] = ()
    """The answer as labels of the generator."""
