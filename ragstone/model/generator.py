"""What a generator does for the models, whatever its architecture.

Shapes: R contexts (B questions × N passages, or others), A answers per context, K answers that are written at once,
T target tokens, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol, TypeVar

import torch

from ragstone.model.context_tokenizer import ContextTokenizer
from ragstone.model.decoding import Decoding


class EncodedContexts(Protocol):
    """R contexts in the form that the generator goes on from. Rows can be selected and repeated."""

    @property
    def device(self) -> torch.device: ...

    def select(self, rows: torch.Tensor) -> EncodedContexts:
        """The contexts of `rows` [K], which may repeat."""

    def __len__(self) -> int: ...


class Writing(Protocol):
    """Answers that are being written, K to each of R contexts, token by token. Rows stand in the order [R, K]."""

    def step(self, tokens: torch.Tensor) -> torch.Tensor:
        """Scores [R·K, V] of what comes behind `tokens` [R·K], the last of each answer.

        The first call tells K, until `go_on` does; its tokens stand for the start, whatever they are.
        """

    def go_on(self, contexts: torch.Tensor, answers: torch.Tensor) -> None:
        """Go on with `contexts` [r] only, in their order, in each from its `answers` [r, K'], which may repeat."""


Contexts = TypeVar("Contexts", bound=EncodedContexts)


class Generator(Protocol[Contexts]):
    """Reads contexts and writes answers. Targets are labels in the generator's own native convention."""

    model: Any
    """The transformers model, an nn.Module."""
    tokenizer: Any
    context_tokenizer: ContextTokenizer
    """Makes contexts tokens, and remembers those of passages."""

    def longest_context(self, answer: int = 0) -> int | None:
        """Tokens of a context at most, beside answers of `answer` tokens; None where the architecture sets no limit."""

    @property
    def longest_target(self) -> int | None:
        """Tokens of an answer at most; None where the architecture sets no limit."""

    def tokenize_targets(self, answers: Sequence[str], max_length: int) -> torch.Tensor:
        """Labels [R, T] of answers cut to `max_length` tokens, -100 at padding."""

    def encode(self, contexts: Sequence[tuple[str, str]], max_length: int) -> Contexts:
        """Read contexts given as (passage part, question part), cut to `max_length` tokens, see ContextTokenizer."""

    def target_logits(
        self, contexts: Contexts, labels: torch.Tensor, places: torch.Tensor | None = None
    ) -> torch.Tensor:
        """Scores of every token at the positions of targets, all earlier targets given.

        Args:
            contexts: R contexts.
            labels: [R, A, T] A answers to each, -100 at padding.
            places: [R, A, T] true at the M labels whose scores are wanted; where None, all that are no padding.

        Returns:
            [M, V], a row for each of the M labels, in their order.
        """

    def search(self, contexts: Contexts, doc_log_probs: torch.Tensor, decoding: Decoding) -> list[list[list[int]]]:
        """Search for answers, each read from N contexts at once: RAG-Token's decoding; plain decoding for N = 1.

        Args:
            contexts: G·N contexts.
            doc_log_probs: [G, N] log-probabilities of the contexts of each group.
            decoding: how to search.

        Returns:
            G lists of num_return_sequences label sequences, best first; samples in the order drawn.
        """

    def text(self, labels: Sequence[int]) -> str:
        """The answer that a label sequence spells."""

    def is_preamble(self, label: int) -> bool:
        """Whether a first label carries nothing of the answer (BART's <s>)."""
