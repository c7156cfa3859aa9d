"""A row for each answer, behind a copy of what its prompt left: for every model that can be read step by step.

For those that keep a state instead of what they have read (Mamba, Qwen3-Next), or whose attention goes by distance in
the row (BLOOM). Each is called as transformers' own generate calls it: prompts padded on the left, one token a step.

Shapes: R prompts, A answers per prompt, K answers that are written at once, S prompt tokens, T target tokens,
V vocabulary.
"""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from typing import Any

import torch
from transformers.cache_utils import DynamicCache

from ragstone.model.continuation import Prompts
from ragstone.model.runs import runs_of_like_length
from ragstone.model.selected_positions import only_at, vocabulary_layer
from ragstone.model.side_by_side import padded_left

TOKENS_KEPT = 8192
GPU_TOKENS_KEPT = 32768
"""Tokens of prompts at once, counted for every answer's copy: in BLOOM-560m 200 kB each in float32."""


class RowByRow:
    """See continuation.Continuation."""

    def __init__(self, model: Any, filler: int) -> None:
        """`filler` is a token that stands where there is none."""
        self._model = model
        self._filler = filler
        parameters = inspect.signature(model.forward).parameters
        self._takes_positions = "position_ids" in parameters
        self._cache_name = "cache_params" if "cache_params" in parameters else "past_key_values"

    def read(self, ids: Sequence[list[int]]) -> None:
        """See Continuation.read: what a model keeps is of its own kind, and is not taken apart."""

    def target_logits(self, prompts: Prompts, labels: torch.Tensor, wanted: torch.Tensor) -> torch.Tensor:
        """See Continuation.target_logits. Token by token, all answers to some prompts at once."""
        answers, length = labels.shape[1:]
        lengths = [answers * len(row) for row in prompts.ids]
        found, order = [], []
        for run in runs_of_like_length(lengths, self._tokens_kept()):
            rows = torch.tensor(run, device=labels.device)
            writing = self.begin(prompts.select(rows))
            some = labels[rows].flatten(0, 1)
            at = wanted[rows].flatten(0, 1)
            tokens = torch.cat([some[:, :1], some[:, :-1]], dim=1).clamp(min=0)
            steps = []
            for step in range(length):
                with only_at(at[:, step, None], vocabulary_layer(self._model)):
                    steps.append(writing.step(tokens[:, step]))
            # From the order in which they were read, step by step, to that of the labels.
            number, row = at.T.nonzero(as_tuple=True)
            found.append(torch.cat(steps))
            order.append((rows[row // answers] * answers + row % answers) * length + number)
        return torch.cat(found)[torch.cat(order).argsort()]

    def begin(self, prompts: Prompts) -> _Writing:
        """See Continuation.begin."""
        return _Writing(self, prompts)

    def prompts_at_once(self, longest: int, answers: int) -> int | None:
        """See Continuation.prompts_at_once."""
        return max(1, self._tokens_kept() // (longest * answers))

    def _tokens_kept(self) -> int:
        return TOKENS_KEPT if self._model.device.type == "cpu" else GPU_TOKENS_KEPT

    def read_into_cache(self, prompts: Prompts) -> tuple[Any, torch.Tensor]:
        """A cache of all but the last tokens of prompts, and where there is a token [R, S]."""
        ids = [row[:-1] for row in prompts.ids]
        tokens, mask = padded_left(ids, self._filler, prompts.device, max(1, *map(len, ids)))
        cache = DynamicCache(config=self._model.config)
        with only_at(torch.zeros_like(mask), vocabulary_layer(self._model)):
            self.call(cache, tokens, mask)
        return cache, mask

    def call(self, cache: Any, tokens: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        """Scores behind `tokens` [R, Q], which are the last of those in `mask` [R, S]; the cache knows the others."""
        length = tokens.shape[1]
        positions = (mask.cumsum(dim=1) - 1).clamp(min=0)[:, -length:]
        inputs = self._model.prepare_inputs_for_generation(
            tokens,
            attention_mask=mask.long(),
            use_cache=True,
            is_first_iteration=mask.shape[1] == length,
            **{self._cache_name: cache},
            **({"position_ids": positions} if self._takes_positions else {}),
        )
        # Some would give the last scores alone (Falcon-H1); which are wanted is the caller's affair.
        inputs.pop("logits_to_keep", None)
        return self._model(**inputs).logits


class _Writing:
    """See generator.Writing. The K answers to a prompt are K rows of the model, one behind the other."""

    def __init__(self, continuation: RowByRow, prompts: Prompts) -> None:
        self._continuation = continuation
        self._last: torch.Tensor | None = prompts.last()
        self._cache, self._mask = continuation.read_into_cache(prompts)
        self._each = 1

    def step(self, tokens: torch.Tensor) -> torch.Tensor:
        """See Writing.step."""
        if self._last is not None:
            prompts = torch.arange(len(self._last), device=tokens.device)
            self._each = len(tokens) // len(prompts)
            self._keep(prompts.repeat_interleave(self._each))
            tokens, self._last = self._last.repeat_interleave(self._each), None
        self._mask = torch.cat([self._mask, self._mask.new_ones(len(self._mask), 1)], dim=1)
        return self._continuation.call(self._cache, tokens[:, None], self._mask).flatten(0, 1)

    def go_on(self, contexts: torch.Tensor, answers: torch.Tensor) -> None:
        """See Writing.go_on."""
        self._keep((contexts.unsqueeze(1) * self._each + answers).flatten())
        self._each = answers.shape[1]

    def _keep(self, rows: torch.Tensor) -> None:
        self._cache.reorder_cache(rows)
        self._mask = self._mask[rows]
