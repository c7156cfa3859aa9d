"""Answers side by side in one row behind their prompt, where a model attends as a mask and positions say.

A prompt is read once: all candidates or beams of it stand behind it, and the mask keeps them apart. So there are no
keys and values of the prompt for each of them, and none of a beam move when it goes on from another.

Shapes: R prompts, A answers per prompt, K answers that are written at once, S prompt tokens, T target tokens,
V vocabulary.
"""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from typing import Any

import torch
from torch.nn.functional import pad
from transformers.cache_utils import DynamicCache

from ragstone.encoders.precision import padded_length
from ragstone.model.continuation import Memory, Prompts
from ragstone.model.marginal import IGNORED
from ragstone.model.runs import runs_of_like_length, tokens_at_once
from ragstone.model.selected_positions import only_at, vocabulary_layer

KINDS_OF_LAYERS = {"full_attention", "sliding_attention"}


class SideBySide:
    """See continuation.Continuation."""

    def __init__(self, model: Any, filler: int) -> None:
        """`filler` is a token that stands where there is none."""
        self._model = model
        self._filler = filler
        self._takes_positions = "position_ids" in inspect.signature(model.forward).parameters
        self._layer_types = set(getattr(model.config, "layer_types", None) or [])
        self._window: int | None = getattr(model.config, "sliding_window", None)
        if self._layer_types and "sliding_attention" not in self._layer_types:
            self._window = None

    @staticmethod
    def suits(model: Any) -> bool:
        """Whether the model keeps keys and values of what it has read, and nothing else."""
        return not model._is_stateful and set(getattr(model.config, "layer_types", None) or []) <= KINDS_OF_LAYERS

    def read(self, ids: Sequence[list[int]]) -> Memory:
        """See Continuation.read. Those of like length are read together, padded on the left."""
        ids = [row[:-1] for row in ids]
        device = self._model.device
        # A prompt's last token is read later on; there may be no other.
        lengths = [padded_length(max(1, len(row)), device, self._model.dtype) for row in ids]
        runs = runs_of_like_length(lengths, tokens_at_once(device))
        layers: list[list[tuple[torch.Tensor, torch.Tensor]]] = []
        masks = []
        for run in runs:
            tokens, mask = padded_left([ids[row] for row in run], self._filler, device, lengths[run[0]])
            cache: Any = DynamicCache()
            with only_at(torch.zeros_like(mask), vocabulary_layer(self._model)):
                self._model(
                    input_ids=tokens,
                    attention_mask=mask.long(),
                    past_key_values=cache,
                    use_cache=True,
                    **self._positions((mask.cumsum(dim=1) - 1).clamp(min=0)),
                )
            missing = max(lengths) - mask.shape[1]
            layers.append([(pad(x.keys, (0, 0, missing, 0)), pad(x.values, (0, 0, missing, 0))) for x in cache.layers])
            masks.append(pad(mask, (missing, 0)))
        place = torch.tensor([row for run in runs for row in run], device=device).argsort()
        joined = [
            (torch.cat([keys for keys, _ in parts])[place], torch.cat([values for _, values in parts])[place])
            for parts in zip(*layers, strict=True)
        ]
        return Memory(joined, torch.cat(masks)[place])

    def target_logits(self, prompts: Prompts, labels: torch.Tensor, wanted: torch.Tensor) -> torch.Tensor:
        """See Continuation.target_logits."""
        answers, length = labels.shape[1:]
        before = torch.cat([prompts.last()[:, None, None].expand(-1, answers, -1), labels[:, :, :-1]], dim=2)
        steps = torch.arange(length, device=labels.device).repeat(answers)
        own = torch.ones(length, length, dtype=torch.bool, device=labels.device).tril()
        with only_at(wanted.flatten(1), vocabulary_layer(self._model)):
            logits = self.go_on(
                prompts,
                _cache(prompts),
                before.masked_fill(before == IGNORED, self._filler).flatten(1),
                steps,
                steps,
                torch.block_diag(*[own] * answers).expand(len(prompts), -1, -1),
            )
        return logits.squeeze(0)

    def begin(self, prompts: Prompts) -> _Writing:
        """See Continuation.begin."""
        return _Writing(self, prompts)

    def prompts_at_once(self, longest: int, answers: int) -> int | None:
        """See Continuation.prompts_at_once: any number, as nothing is copied for an answer."""
        return None

    def go_on(
        self,
        prompts: Prompts,
        cache: Any,
        tokens: torch.Tensor,
        steps: torch.Tensor,
        written_steps: torch.Tensor,
        visible: torch.Tensor,
    ) -> torch.Tensor:
        """Scores of what comes behind tokens that stand behind their prompt.

        Args:
            prompts: R prompts with their memory.
            cache: keys and values of the prompts and of what was written.
            tokens: [R, Q]
            steps: [Q] how many tokens of the same answer stand before each, behind the prompt's last.
            written_steps: [W] the same of the W tokens behind the prompt.
            visible: [R, Q, W] which of the W tokens behind the prompt each attends to, the Q new ones last.
        """
        memory = prompts.memory
        assert memory is not None
        known = memory.mask[:, None].expand(-1, tokens.shape[1], -1)
        mask = torch.cat([known, visible], dim=2)
        length = memory.mask.sum(dim=1, keepdim=True)
        positions = length + steps
        places = torch.cat([memory.mask.cumsum(dim=1) - 1, length + written_steps], dim=1)
        return self._model(
            input_ids=tokens,
            attention_mask=self._attention(mask, positions, places),
            past_key_values=cache,
            use_cache=True,
            **self._positions(positions),
        ).logits

    def _attention(self, mask: torch.Tensor, positions: torch.Tensor, places: torch.Tensor) -> Any:
        """A mask as the model takes it in four dimensions, where it leaves its sliding window to whoever made it.

        Args:
            mask: [R, Q, K] what each token may attend to.
            positions: [R, Q] where those tokens stand.
            places: [R, K] where what they attend to stands.
        """
        if self._window is None:
            return self._bias(mask)
        near = self._bias(mask & (places[:, None] > positions[:, :, None] - self._window))
        if "full_attention" not in self._layer_types:
            return near
        return {"full_attention": self._bias(mask), "sliding_attention": near}

    def _bias(self, mask: torch.Tensor) -> torch.Tensor:
        """[R, 1, Q, K] what is added to attention scores."""
        bias = torch.zeros(mask.shape, dtype=self._model.dtype, device=mask.device)
        return bias.masked_fill(~mask, torch.finfo(bias.dtype).min)[:, None]

    def _positions(self, positions: torch.Tensor) -> dict[str, torch.Tensor]:
        return {"position_ids": positions} if self._takes_positions else {}


class _Writing:
    """See generator.Writing. The K answers to a prompt are one row of the model, step behind step."""

    def __init__(self, continuation: SideBySide, prompts: Prompts) -> None:
        self._continuation = continuation
        self._prompts = prompts
        self._cache = _cache(prompts)
        self._steps = torch.zeros(0, dtype=torch.long, device=prompts.device)
        """[W] the step in which each token behind the prompt was written."""
        self._written = torch.zeros(len(prompts), 1, 0, dtype=torch.bool, device=prompts.device)
        """[R, K, W] which of those tokens belong to each answer."""

    def step(self, tokens: torch.Tensor) -> torch.Tensor:
        """See Writing.step."""
        prompts = self._prompts
        each = len(tokens) // len(prompts)
        tokens = tokens.view(-1, each)
        number = int(self._steps[-1]) + 1 if len(self._steps) else 0
        if number == 0:
            tokens = prompts.last()[:, None].expand(-1, each)
        itself = torch.eye(each, dtype=torch.bool, device=prompts.device).expand(len(prompts), -1, -1)
        self._written = torch.cat([self._written.expand(-1, each, -1), itself], dim=2)
        now = torch.full((each,), number, device=prompts.device)
        self._steps = torch.cat([self._steps, now])
        logits = self._continuation.go_on(prompts, self._cache, tokens, now, self._steps, self._written)
        return logits.flatten(0, 1)

    def go_on(self, contexts: torch.Tensor, answers: torch.Tensor) -> None:
        """See Writing.go_on: answers share what they have in common, so that the mask alone moves."""
        self._written = self._written[contexts.unsqueeze(1), answers]
        if len(contexts) < len(self._prompts):
            self._cache.batch_select_indices(contexts)
            self._prompts = self._prompts.select(contexts)


def padded_left(
    ids: list[list[int]], filler: int, device: torch.device, length: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """Token ids [R, `length`] with `filler` on their left, and where there is a token [R, `length`]."""
    tokens = torch.tensor([[filler] * (length - len(row)) + row for row in ids], device=device)
    counts = torch.tensor([len(row) for row in ids], device=device)[:, None]
    return tokens, torch.arange(length, device=device) >= length - counts


def _cache(prompts: Prompts) -> Any:
    """A cache of transformers to go on from, which shares nothing that it changes."""
    assert prompts.memory is not None
    cache = DynamicCache()
    for number, (keys, values) in enumerate(prompts.memory.layers):
        cache.update(keys, values, number)
    return cache
