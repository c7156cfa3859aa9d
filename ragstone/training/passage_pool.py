"""The passages that questions compete over, in a batch or in all held-out data.

Shapes: B questions, P passages.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from ragstone.data.dpr import Context, RetrieverExample


class PassagePool:
    """Positives and hard negatives of examples. Equal passages are one, so that none is its own question's negative."""

    def __init__(self, examples: Sequence[RetrieverExample]) -> None:
        positives = [example.positive for example in examples]
        negatives = [context for example in examples for context in example.hard_negatives]
        self.passages: list[Context] = list(dict.fromkeys([*positives, *negatives]))
        """P passages, positives first."""
        self._rows = {hash(context): row for row, context in enumerate(self.passages)}

    def rows(self, passages: Sequence[Context]) -> torch.Tensor:
        """int64 [len(passages)] where these passages stand in the pool."""
        return torch.tensor([self._rows[hash(context)] for context in passages])

    def targets(self, examples: Sequence[RetrieverExample]) -> torch.Tensor:
        """int64 [B] the row of each question's positive."""
        return self.rows([example.positive for example in examples])

    def excluded(self, examples: Sequence[RetrieverExample]) -> torch.Tensor:
        """bool [B, P] passages that answer a question too, though another was chosen as its positive."""
        excluded = torch.zeros(len(examples), len(self.passages), dtype=torch.bool)
        for i, example in enumerate(examples):
            excluded[i, [self._rows[key] for key in example.positive_keys if key in self._rows]] = True
        excluded[torch.arange(len(examples)), self.targets(examples)] = False
        return excluded
