"""Small decoder-only generators without pretraining (see fresh.py for what their weights must start like)."""

from __future__ import annotations

from typing import Any

import torch

from ragstone.model.fresh import GeneratorSize


def fresh_causal_generator(tokenizer: Any, size: GeneratorSize, seed: int = 42) -> Any:
    """A newly initialised LlamaForCausalLM for `tokenizer`, of `size`'s decoder. The same `seed`, the same weights.

    Its embeddings score the tokens too: a state that has copied a token's embedding scores that token highest from the
    first step on.
    """
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=size.d_model,
        num_hidden_layers=size.decoder_layers,
        num_attention_heads=size.heads,
        intermediate_size=4 * size.d_model,
        max_position_embeddings=size.max_length,
        attention_dropout=size.dropout,
        initializer_range=size.d_model**-0.5,
        tie_word_embeddings=True,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    with torch.random.fork_rng([]):
        torch.manual_seed(seed)
        return LlamaForCausalLM(config).eval()
