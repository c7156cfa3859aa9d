"""What every model does, with or without retrieval, and how it is asked about many questions.

Shapes: B questions, N passages per question.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch

from ragstone.model.answers import Answer, ScoredPassage
from ragstone.model.decoding import Decoding
from ragstone.progress import track
from ragstone.types import IntArray


@dataclass(frozen=True)
class BatchLoss:
    """The training loss of a batch with what explains it."""

    loss: torch.Tensor
    """Sum over questions of what is minimised: negative log-likelihood, label smoothing included."""
    nll: float
    """Sum over questions of -log p(y|x)."""
    questions: int
    target_tokens: int
    passage_ids: IntArray | None
    """[B, N]; None without retrieval."""
    prior_entropy: float
    """Sum over questions of the entropy of p(z|x), in nats."""
    posterior_entropy: float
    """Sum over questions of the entropy of p(z|x,y), in nats."""


class Model(Protocol):
    """Answers questions and learns from answers."""

    model_type: str
    """rag_sequence, rag_token, or the architecture of a closed-book generator (bart, t5)."""
    n_docs: int
    """N unless a call says otherwise; 0 without retrieval."""
    corpus_size: int | None
    """Passages in the knowledge source; None without one."""
    retrieval: Mapping[str, Any]
    """Flags with which passages are found otherwise than by question vector; none without retrieval."""

    def __call__(self, questions: Sequence[str], answers: Sequence[str]) -> BatchLoss:
        """The loss of `answers` to `questions`, with gradients."""

    def generate(self, questions: Sequence[str], decoding: Decoding, n_docs: int | None = None) -> list[list[Answer]]:
        """Answers to each question, best first."""

    def retrieve(self, questions: Sequence[str], n_docs: int | None = None) -> list[tuple[ScoredPassage, ...]]:
        """The passages found for each question, best first.

        Raises:
            InputError: the model retrieves nothing.
        """

    def save(self, folder: Path) -> None:
        """Write a checkpoint."""

    def fingerprint(self) -> str:
        """A hash of weights and settings."""

    def source_fingerprint(self) -> str | None:
        """Names the knowledge source's content; None without retrieval."""

    def close(self) -> None:
        """Let go of the knowledge source."""

    def train(self, mode: bool = True) -> Any: ...
    def eval(self) -> Any: ...


def answer_questions(
    model: Model, questions: Sequence[str], *, n_docs: int | None = None, decoding: Decoding, batch_size: int
) -> Iterator[Answer]:
    """The best answer to each of `questions`, in order."""
    for batch in track(_batches(questions, batch_size), "Answering"):
        for answers in model.generate(batch, decoding, n_docs):
            yield answers[0]


def retrieve_passages(
    model: Model, questions: Sequence[str], *, n_docs: int | None = None, batch_size: int
) -> Iterator[tuple[ScoredPassage, ...]]:
    """The passages found for each of `questions`, in order, without the generator."""
    for batch in track(_batches(questions, batch_size), "Retrieving"):
        yield from model.retrieve(batch, n_docs)


def _batches(questions: Sequence[str], size: int) -> list[Sequence[str]]:
    return [questions[i : i + size] for i in range(0, len(questions), size)]
