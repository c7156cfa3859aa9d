"""What a generator does for the models, whatever its architecture.

Shapes: R contexts (B questions × N passages, or others), A answers per context, S context tokens, T target tokens,
V vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch

from ragstone.model.decoding import Decoding


@dataclass(frozen=True)
class EncodedContexts:
    """Contexts in the form that the generator's decoder attends to. Rows can be selected and repeated."""

    states: torch.Tensor
    """[R, S, D]"""
    attention_mask: torch.Tensor
    """[R, S]"""

    def select(self, rows: torch.Tensor) -> EncodedContexts:
        """The contexts of `rows` [K], which may repeat."""
        return EncodedContexts(self.states[rows], self.attention_mask[rows])

    def __len__(self) -> int:
        return len(self.states)


class Generator(Protocol):
    """Reads contexts and writes answers. Targets are labels in the generator's own native convention."""

    model: Any
    """The transformers model, an nn.Module."""
    tokenizer: Any

    def tokenize_targets(self, answers: Sequence[str], max_length: int) -> torch.Tensor:
        """Labels [R, T] of answers cut to `max_length` tokens, -100 at padding."""

    def encode(self, contexts: Sequence[tuple[str, str]], max_length: int) -> EncodedContexts:
        """Read contexts given as (passage part, question part); a long passage is cut, a question never."""

    def target_logits(self, contexts: EncodedContexts, labels: torch.Tensor) -> torch.Tensor:
        """Scores of every token at the positions of targets, all earlier targets given.

        Args:
            contexts: R contexts.
            labels: [R, A, T] A answers to each, -100 at padding.

        Returns:
            [M, V], a row for each of the M labels that are no padding, in their order.
        """

    def search(
        self, contexts: EncodedContexts, doc_log_probs: torch.Tensor, decoding: Decoding
    ) -> list[list[list[int]]]:
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
