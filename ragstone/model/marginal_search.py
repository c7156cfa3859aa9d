"""transformers' generate over a distribution that is marginalised over N contexts.

Shapes: G groups (questions), K samples per group, N contexts per group, V vocabulary.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping, Sequence
from types import MappingProxyType
from typing import Any

import torch
from transformers import GenerationMixin, PreTrainedConfig, PreTrainedModel
from transformers.cache_utils import DynamicCache
from transformers.modeling_outputs import CausalLMOutputWithPast

from ragstone.model.beam_search import beam_search
from ragstone.model.decoding import Decoding
from ragstone.model.generator import Writing
from ragstone.model.marginal_writing import MarginalWriting
from ragstone.model.selected_positions import vocabulary_layer

SCORES_AT_ONCE = 2**25
GPU_SCORES_AT_ONCE = 2**28
"""Numbers: 128 MiB in float32 on a CPU, 1 GiB on a GPU, and up to four times as much for what is made of them."""


@torch.no_grad()
def search_answers(
    model: Any,
    begin: Callable[[torch.Tensor], Writing],
    doc_log_probs: torch.Tensor,
    decoding: Decoding,
    *,
    start: int,
    ends: Sequence[int],
    bad_words: Sequence[Sequence[int]] | None,
    options: Mapping[str, Any] = MappingProxyType({}),
    contexts_at_once: int | None = None,
) -> list[list[list[int]]]:
    """Search as `decoding` says. See generator.Generator.search.

    Args:
        model: a model of transformers, whose generation config's other settings stay in force.
        begin: gives its answers to the contexts of some rows, of G·N, none begun.
        doc_log_probs: [G, N] weights of the contexts.
        decoding: how to search.
        start: the token that stands for what is before the answer.
        ends: tokens that end an answer.
        bad_words: token sequences never written.
        options: further generation settings.
        contexts_at_once: how many are written from together, at most; any number where None. A group is not divided.
    """
    settings: dict[str, Any] = {
        "bad_words_ids": [list(words) for words in bad_words] if bad_words else None,
        "eos_token_id": list(ends),
        **decoding.generation_options(),
        **options,
    }
    found: list[list[list[int]]] = []
    device = doc_log_probs.device
    n = doc_log_probs.shape[1]
    for first, last in _parts(model, doc_log_probs, decoding, contexts_at_once):
        weights = doc_log_probs[first:last]
        groups = last - first
        writing = MarginalWriting(begin(torch.arange(first * n, last * n, device=device)), weights)
        search: Any = MarginalSearch(model, writing)
        sequences = search.generate(
            torch.full((groups, 1), start, device=device),
            attention_mask=torch.ones(groups, 1, dtype=torch.long, device=device),
            # Not used: what was read so far is the writing's own affair. Without it, generate would make one.
            past_key_values=DynamicCache(),
            custom_generate=beam_search if decoding.num_beams > 1 else None,
            **settings,
        )
        rows = [_trim(row, set(ends)) for row in sequences[:, 1:].tolist()]
        each = decoding.num_return_sequences
        found += [rows[i : i + each] for i in range(0, len(rows), each)]
    return found


def _parts(
    model: Any, doc_log_probs: torch.Tensor, decoding: Decoding, contexts_at_once: int | None
) -> Iterator[tuple[int, int]]:
    """The groups in runs, whose scores over the vocabulary are no more numbers than SCORES_AT_ONCE at each token."""
    groups, n = doc_log_probs.shape
    limit = SCORES_AT_ONCE if doc_log_probs.device.type == "cpu" else GPU_SCORES_AT_ONCE
    contexts = limit // (decoding.answers_at_once * vocabulary_layer(model).out_features)
    at_once = max(1, min(contexts, contexts_at_once or contexts) // n)
    return ((first, min(first + at_once, groups)) for first in range(0, groups, at_once))


class MarginalSearch(PreTrainedModel, GenerationMixin):
    """Shows transformers' generate one language model per group, whose next token is the marginal over N contexts.

    It looks like a decoder-only model whose prompt is one token, so that greedy search, sampling and every logits
    processor of transformers work as they are. Made for one call of generate.
    """

    config_class = PreTrainedConfig

    def __init__(self, model: Any, writing: MarginalWriting) -> None:
        """See search_answers; `writing` is of the groups that are searched."""
        config = PreTrainedConfig(is_encoder_decoder=False)
        config.vocab_size = model.config.get_text_config().vocab_size
        super().__init__(config)
        self.generation_config = copy.deepcopy(model.generation_config)
        self.writing = writing
        self._like = model

    @property
    def device(self) -> torch.device:
        return self._like.device

    @property
    def dtype(self) -> torch.dtype:
        return self._like.dtype

    def prepare_inputs_for_generation(self, input_ids: Any, *_: Any, **kwargs: Any) -> dict[str, Any]:
        return {"input_ids": input_ids[:, -1:], "past_key_values": kwargs["past_key_values"]}

    def forward(
        self, input_ids: torch.Tensor, attention_mask: torch.Tensor | None = None, past_key_values: Any = None, **_: Any
    ) -> CausalLMOutputWithPast:
        """Marginal scores [G·K, 1, V] of the token behind `input_ids` [G·K, 1], for K samples of each group.

        `attention_mask` is there for generate, which asks for it; rows have no padding.
        """
        scores = self.writing.scores(self.writing.step(input_ids.view(len(self.writing), -1)))
        return CausalLMOutputWithPast(logits=scores.flatten(0, 1).unsqueeze(1), past_key_values=past_key_values)


def _trim(labels: list[int], ends: set[int]) -> list[int]:
    """Labels up to their first end token; behind it is padding."""
    end = next((i for i, label in enumerate(labels) if label in ends), len(labels))
    return labels[: end + 1]
