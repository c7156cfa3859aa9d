"""Answers that are written from N contexts at once, their next token marginalised over them.

Shapes: G groups (questions), N contexts per group, K answers per group, V vocabulary.
"""

from __future__ import annotations

import torch

from ragstone.model.generator import Writing
from ragstone.model.marginal import marginal_logits


class MarginalWriting:
    """Answers of G groups, K each. Rows of the generator stand in the order [G, N, K]: those of a context together."""

    def __init__(self, writing: Writing, doc_log_probs: torch.Tensor) -> None:
        """`writing` has begun nothing to G·N contexts; `doc_log_probs` [G, N] are their weights."""
        self._writing = writing
        self._doc_log_probs = doc_log_probs

    def __len__(self) -> int:
        return len(self._doc_log_probs)

    def step(self, tokens: torch.Tensor) -> torch.Tensor:
        """What each context says [G, N, K, V] of what comes behind `tokens` [G, K]. See generator.Writing.step."""
        groups, n = self._doc_log_probs.shape
        logits = self._writing.step(tokens.unsqueeze(1).expand(-1, n, -1).flatten())
        return logits.view(groups, n, -1, logits.shape[-1])

    def scores(self, logits: torch.Tensor, groups: slice = slice(None)) -> torch.Tensor:
        """The marginal over the contexts [g, K, V] of `logits` [g, N, K, V], which are those of some groups.

        Logarithms of probabilities, or for a single context its own scores.
        """
        if logits.shape[1] == 1:
            return logits.squeeze(1)
        return marginal_logits(logits, self._doc_log_probs[groups])

    def go_on(self, groups: torch.Tensor, answers: torch.Tensor) -> None:
        """Go on with some `groups` [g], in each from `answers` [g, K'], which may repeat."""
        n = self._doc_log_probs.shape[1]
        contexts = groups.unsqueeze(1) * n + torch.arange(n, device=groups.device)
        self._writing.go_on(contexts.flatten(), answers.repeat_interleave(n, dim=0))
        self._doc_log_probs = self._doc_log_probs[groups]
