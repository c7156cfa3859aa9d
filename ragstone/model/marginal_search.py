"""transformers' generate over a distribution that is marginalised over N contexts.

Shapes: G groups (questions), K beams, N contexts per group, V vocabulary.
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

from ragstone.model.decoding import Decoding
from ragstone.model.generator import Writing
from ragstone.model.marginal import marginal_logits

SCORES_AT_ONCE = 2**22
GPU_SCORES_AT_ONCE = 2**29
"""Numbers: 16 MiB in float32 on a CPU, 2 GiB on a GPU."""


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
    for first, last in _parts(model, doc_log_probs, decoding):
        weights = doc_log_probs[first:last]
        groups = last - first
        search: Any = MarginalSearch(model, begin(torch.arange(first * n, last * n, device=device)), weights)
        sequences = search.generate(
            torch.full((groups, 1), start, device=device),
            attention_mask=torch.ones(groups, 1, dtype=torch.long, device=device),
            # Not used: what was read so far is the writing's own affair. Without it, generate would make one.
            past_key_values=DynamicCache(),
            **settings,
        )
        rows = [_trim(row, set(ends)) for row in sequences[:, 1:].tolist()]
        each = decoding.num_return_sequences
        found += [rows[i : i + each] for i in range(0, len(rows), each)]
    return found


def _parts(model: Any, doc_log_probs: torch.Tensor, decoding: Decoding) -> Iterator[tuple[int, int]]:
    """The groups in runs, whose scores over the vocabulary are no more numbers than SCORES_AT_ONCE at each token.

    What is larger is new memory at every token, which costs a CPU more than to compute on it.
    """
    groups, n = doc_log_probs.shape
    limit = SCORES_AT_ONCE if doc_log_probs.device.type == "cpu" else GPU_SCORES_AT_ONCE
    answers = max(decoding.num_beams, decoding.num_return_sequences)
    at_once = max(1, limit // (n * answers * model.get_output_embeddings().out_features))
    return ((first, min(first + at_once, groups)) for first in range(0, groups, at_once))


class MarginalSearch(PreTrainedModel, GenerationMixin):
    """Shows transformers' search one language model per group, whose next token is the marginal over N contexts.

    To the search it looks like a decoder-only model whose prompt is one token, so that greedy search, beam search,
    sampling and every logits processor of transformers work as they are. Inside, each of the G·K rows is N rows of the
    generator, in the order [G, N, K]: the beams of a context stand together. Made for one call of generate.
    """

    config_class = PreTrainedConfig

    def __init__(self, model: Any, writing: Writing, doc_log_probs: torch.Tensor) -> None:
        """See search_answers."""
        config = PreTrainedConfig(is_encoder_decoder=False)
        config.vocab_size = model.config.get_text_config().vocab_size
        super().__init__(config)
        self.generation_config = copy.deepcopy(model.generation_config)
        self._writing = writing
        self._dtype = model.dtype
        self._doc_log_probs = doc_log_probs

    @property
    def device(self) -> torch.device:
        return self._doc_log_probs.device

    @property
    def dtype(self) -> torch.dtype:
        return self._dtype

    def prepare_inputs_for_generation(self, input_ids: Any, *_: Any, **kwargs: Any) -> dict[str, Any]:
        return {"input_ids": input_ids[:, -1:], "past_key_values": kwargs["past_key_values"]}

    def forward(
        self, input_ids: torch.Tensor, attention_mask: torch.Tensor | None = None, past_key_values: Any = None, **_: Any
    ) -> CausalLMOutputWithPast:
        """Marginal scores [G·K, 1, V] of the token behind `input_ids` [G·K, 1].

        `attention_mask` is there for generate, which asks for it; rows have no padding.
        """
        groups, n = self._doc_log_probs.shape
        logits = self._writing.step(input_ids.view(groups, 1, -1).expand(-1, n, -1).reshape(-1))
        if n > 1:
            logits = marginal_logits(logits.view(groups, n, -1, logits.shape[-1]), self._doc_log_probs)
        return CausalLMOutputWithPast(logits=logits.view(len(input_ids), 1, -1), past_key_values=past_key_values)

    def _reorder_cache(self, cache: Any, beams: torch.Tensor) -> Any:
        """Follow the beams that survived."""
        groups, n = self._doc_log_probs.shape
        k = len(beams) // groups
        # Beam g·K + k of the search is row (g·N + z)·K + k of the writing, for each context z.
        first = torch.arange(groups * n, device=beams.device).view(groups, n, 1) * k
        self._writing.reorder((first + (beams % k).view(groups, 1, k)).flatten())
        return cache


def _trim(labels: list[int], ends: set[int]) -> list[int]:
    """Labels up to their first end token; behind it is padding."""
    end = next((i for i, label in enumerate(labels) if label in ends), len(labels))
    return labels[: end + 1]
