"""transformers' generate over a distribution that is marginalised over N contexts.

Shapes: G groups (questions), K beams, N contexts per group, S context tokens, V vocabulary.
"""

from __future__ import annotations

import copy
from typing import Any

import torch
from transformers import GenerationMixin, PreTrainedConfig, PreTrainedModel
from transformers.cache_utils import DynamicCache, EncoderDecoderCache
from transformers.modeling_outputs import BaseModelOutput, CausalLMOutputWithPast

from ragstone.model.marginal import marginal_logits


class MarginalSearch(PreTrainedModel, GenerationMixin):
    """Shows transformers' search one language model per group, whose next token is the marginal over N contexts.

    To the search it looks like a decoder-only model whose prompt is the decoder's start token, so that greedy search,
    beam search, sampling and every logits processor of transformers work as they are. Inside, each of the G·K rows is
    N rows of the sequence-to-sequence model, in the order [G, N, K]: the beams of a context stand together. Made for
    one call of generate.
    """

    config_class = PreTrainedConfig

    def __init__(
        self,
        model: Any,
        states: torch.Tensor,
        attention_mask: torch.Tensor,
        doc_log_probs: torch.Tensor,
        *,
        shares_contexts: bool,
    ) -> None:
        """Search with `model`.

        Args:
            model: a sequence-to-sequence model of transformers.
            states: [G·N, S, D] the contexts.
            attention_mask: [G·N, S]
            doc_log_probs: [G, N] their weights.
            shares_contexts: whether beams can attend to the same rows of `states` (see shared_attention); if not,
                each gets its own.
        """
        config = PreTrainedConfig(is_encoder_decoder=False)
        config.vocab_size = model.config.vocab_size
        super().__init__(config)
        self.generation_config = copy.deepcopy(model.generation_config)
        self._states = states
        self._attention_mask = attention_mask
        self._doc_log_probs = doc_log_probs
        self._own_contexts = shares_contexts
        # Not a submodule: this object owns no weights.
        self.__dict__["_model"] = model

    @property
    def device(self) -> torch.device:
        return self._states.device

    @property
    def dtype(self) -> torch.dtype:
        return self._states.dtype

    def new_cache(self) -> EncoderDecoderCache:
        """An empty cache for one call of generate."""
        return EncoderDecoderCache(DynamicCache(), DynamicCache())

    def prepare_inputs_for_generation(self, input_ids: Any, *_: Any, **kwargs: Any) -> dict[str, Any]:
        return {"input_ids": input_ids[:, -1:], "past_key_values": kwargs["past_key_values"]}

    def forward(
        self, input_ids: torch.Tensor, attention_mask: torch.Tensor | None = None, past_key_values: Any = None, **_: Any
    ) -> CausalLMOutputWithPast:
        """Marginal scores [G·K, 1, V] of the token behind `input_ids` [G·K, 1].

        `attention_mask` is there for generate, which asks for it; rows have no padding.
        """
        groups, n = self._doc_log_probs.shape
        if not self._own_contexts:
            # At the first token, when generate has chosen K.
            beams = len(input_ids) // groups
            self._states = self._states.repeat_interleave(beams, dim=0)
            self._attention_mask = self._attention_mask.repeat_interleave(beams, dim=0)
            self._own_contexts = True
        output = self.__dict__["_model"](
            encoder_outputs=BaseModelOutput(last_hidden_state=self._states),
            attention_mask=self._attention_mask,
            decoder_input_ids=input_ids.view(groups, 1, -1).expand(-1, n, -1).reshape(-1, 1),
            past_key_values=past_key_values,
            use_cache=True,
        )
        logits = output.logits[:, -1:]
        if n > 1:
            logits = marginal_logits(logits.view(groups, n, -1, logits.shape[-1]), self._doc_log_probs)
            logits = logits.view(len(input_ids), 1, -1)
        return CausalLMOutputWithPast(logits=logits, past_key_values=output.past_key_values)

    def _reorder_cache(self, cache: Any, beams: torch.Tensor) -> EncoderDecoderCache:
        """Follow the beams that survived. Cross-attention stays: all beams of a group attend to the same contexts."""
        groups, n = self._doc_log_probs.shape
        k = len(beams) // groups
        # Beam g·K + k of the search is row (g·N + z)·K + k of the model, for each context z.
        first = torch.arange(groups * n, device=beams.device).view(groups, n, 1) * k
        rows = first + (beams % k).view(groups, 1, k)
        cache.self_attention_cache.reorder_cache(rows.flatten())
        return cache
