"""Attention of several decoder rows to one context.

Beams and candidate answers of a context attend to the same keys and values. A decoder that gets fewer rows of encoder
states than it has rows of tokens computes and keeps those once per context, and this attention function, which
transformers' models call, lets the rows of a context look at them together.

Shapes: R contexts, A answers per context (the fastest dimension of the R·A rows), T target tokens, S context tokens,
H heads, D dimensions of a head.
"""

from __future__ import annotations

from typing import Any

import torch
from transformers.modeling_outputs import BaseModelOutput

from ragstone.encoders import attention as own
from ragstone.encoders.attention import attention, register

NAME = "ragstone_shared"


def share_contexts(model: Any) -> bool:
    """Let the decoder of `model` take R rows of encoder states for R·A rows of tokens; whether it can."""
    given = model.config._attn_implementation
    if given not in ("sdpa", own.NAME, NAME):
        return False
    register(NAME, shared_attention)
    model.set_attn_implementation(NAME)
    shares = _tells_contexts_apart(model)
    if not shares:
        model.set_attn_implementation(given)
    return shares


@torch.no_grad()
def _tells_contexts_apart(model: Any) -> bool:
    """Whether two contexts and four rows of one token give what four contexts give.

    There are decoders that take the number of rows from their own tokens for keys and values too (umT5).
    """
    training = model.training
    model.eval()
    like = {"device": model.device, "dtype": model.dtype}
    states = torch.tensor([1.0, -1.0], **like)[:, None, None]
    states = states * torch.linspace(0, 1, model.config.hidden_size, **like)
    tokens = torch.zeros(4, 1, dtype=torch.long, device=model.device)

    def logits(states: torch.Tensor) -> torch.Tensor:
        mask = torch.ones(len(states), 1, dtype=torch.long, device=model.device)
        encoded = BaseModelOutput(last_hidden_state=states)
        return model(
            encoder_outputs=encoded, attention_mask=mask, decoder_input_ids=tokens, use_cache=False
        ).logits.float()

    try:
        return torch.allclose(logits(states), logits(states.repeat_interleave(2, dim=0)), rtol=1e-2, atol=1e-2)
    except RuntimeError:
        return False
    finally:
        model.train(training)


def shared_attention(
    module: Any,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    **options: Any,
) -> tuple[torch.Tensor, None]:
    """encoders.attention, for keys of fewer rows than the queries too.

    Args:
        module: the attention layer.
        query: [R·A, H, T, D]
        key: [R, H, S, D]
        value: [R, H, S, D]
        attention_mask: [R, 1, 1 or T, S], the same for all queries of a row where A is above 1.
        options: as transformers' attention functions take them.

    Returns:
        [R·A, T, H, D], and None for the weights.
    """
    rows, heads, tokens, size = query.shape
    contexts = len(key)
    if rows == contexts:
        return attention(module, query, key, value, attention_mask, **options)
    together = query.view(contexts, -1, heads, tokens, size).transpose(1, 2).reshape(contexts, heads, -1, size)
    mask = None if attention_mask is None else attention_mask[:, :, :1]
    bias = options.pop("position_bias", None)
    if bias is not None:
        # T5's cross-attention knows no positions: its bias is the same for all queries.
        options["position_bias"] = bias[:, :, :1]
    output, _ = attention(module, together, key, value, mask, **options)
    return output.view(contexts, -1, tokens, heads, size).flatten(0, 1), None
