"""Prompts of decoder-only generators, and how answers go on behind them.

Shapes: R prompts, A answers per prompt, S prompt tokens, T target tokens, H heads, D dimensions of a head,
V vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch

from ragstone.model.generator import Writing


@dataclass(frozen=True)
class Memory:
    """What a model keeps of prompts, all but their last tokens; padding is on the left."""

    layers: list[tuple[torch.Tensor, torch.Tensor]]
    """Keys and values [R, H, S, D] of each layer."""
    mask: torch.Tensor
    """[R, S] true where there is a token."""


@dataclass(frozen=True)
class Prompts:
    """Prompts as token ids, and what the model keeps of them where it has read them. See generator.EncodedContexts."""

    ids: list[list[int]]
    device: torch.device
    memory: Memory | None

    def select(self, rows: torch.Tensor) -> Prompts:
        """See EncodedContexts.select."""
        memory = self.memory
        if memory is not None:
            layers = [(keys[rows], values[rows]) for keys, values in memory.layers]
            memory = Memory(layers, memory.mask[rows])
        return Prompts([self.ids[row] for row in rows.tolist()], self.device, memory)

    def last(self) -> torch.Tensor:
        """[R] the last tokens."""
        return torch.tensor([row[-1] for row in self.ids], device=self.device)

    def __len__(self) -> int:
        return len(self.ids)


class Continuation(Protocol):
    """How answers are scored and written behind prompts, without gradients."""

    def read(self, ids: Sequence[list[int]]) -> Memory | None:
        """What is kept of prompts; None where they are read anew whenever answers go on from them."""

    def target_logits(self, prompts: Prompts, labels: torch.Tensor, wanted: torch.Tensor) -> torch.Tensor:
        """Scores [M, V] at those M of `labels` [R, A, T] where `wanted` is true. See Generator.target_logits."""

    def begin(self, prompts: Prompts) -> Writing:
        """Answers to prompts, none begun."""

    def prompts_at_once(self, longest: int, answers: int) -> int | None:
        """How many prompts of `longest` tokens are gone on from together, `answers` to each; None where any number."""
