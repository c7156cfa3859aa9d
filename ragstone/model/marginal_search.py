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
    N rows of the sequence-to-sequence model. Made for one call of generate.
    """

    config_class = PreTrainedConfig

    def __init__(self, model: Any, states: torch.Tensor, attention_mask: torch.Tensor, doc_log_probs: torch.Tensor):
        """`states` [G·N, S, D] and `attention_mask` [G·N, S] are the contexts, `doc_log_probs` [G, N] their weights."""
        config = PreTrainedConfig(is_encoder_decoder=False)
        config.vocab_size = model.config.vocab_size
        super().__init__(config)
        self.generation_config = copy.deepcopy(model.generation_config)
        self._states = states
        self._attention_mask = attention_mask
        self._doc_log_probs = doc_log_probs
        self._beams = 1
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
        self._repeat_contexts(len(input_ids) // groups)
        output = self.__dict__["_model"](
            encoder_outputs=BaseModelOutput(last_hidden_state=self._states),
            attention_mask=self._attention_mask,
            decoder_input_ids=input_ids.repeat_interleave(n, dim=0),
            past_key_values=past_key_values,
            use_cache=True,
        )
        logits = output.logits[:, -1:]
        if n > 1:
            weights = self._doc_log_probs.repeat_interleave(self._beams, dim=0)
            logits = marginal_logits(logits.view(len(input_ids), n, 1, -1), weights)
        return CausalLMOutputWithPast(logits=logits, past_key_values=output.past_key_values)

    def _repeat_contexts(self, beams: int) -> None:
        """Rows [G·N, ...] once for each beam, [G·K·N, ...]: done at the first token, when generate has chosen K."""
        if beams == self._beams:
            return
        groups, n = self._doc_log_probs.shape
        for name in ("_states", "_attention_mask"):
            tensor = getattr(self, name)
            rows = tensor.view(groups, n, *tensor.shape[1:]).repeat_interleave(beams, dim=0).flatten(0, 1)
            setattr(self, name, rows)
        self._beams = beams

    def _reorder_cache(self, cache: Any, beams: torch.Tensor) -> EncoderDecoderCache:
        """Follow the beams that survived. Cross-attention stays: all beams of a group attend to the same contexts."""
        n = self._doc_log_probs.shape[1]
        rows = beams[:, None] * n + torch.arange(n, device=beams.device)
        cache.self_attention_cache.reorder_cache(rows.flatten())
        return cache
