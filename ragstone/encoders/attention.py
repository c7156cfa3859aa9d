"""Attention that transformers' models call, trained fast on CPUs in bfloat16.

In bfloat16, torch's fused kernel for CPUs takes two to four times as long with its backward pass as the matrix products
of which attention consists, see benchmarks/attention.py; forward alone it is the faster one at most shapes. Products
keep every score until the backward pass: long contexts are left to the kernel.

Shapes: R rows, H heads, T tokens that attend, S tokens attended to, D dimensions of a head.
"""

from __future__ import annotations

import inspect
import sys
from typing import Any

import torch

NAME = "ragstone"
LONGEST = 512
"""Tokens attended to, at most, for products of their own: scores of so many take what a layer keeps anyway."""


def use_attention(model: Any) -> None:
    """Let a model of transformers that attends by torch's kernel do so by this module's function.

    A model that does something else for that kernel than for others, such as to choose what it attends to, keeps it. A
    model only holds the function's name: one that comes from another process is given it once more.
    """
    given = model.config._attn_implementation
    if given == NAME or (given == "sdpa" and not _knows_the_kernel(type(model))):
        register(NAME, attention)
        model.set_attn_implementation(NAME)


def _knows_the_kernel(kind: type) -> bool:
    """Whether the module of a class names the kernel, or cannot be read."""
    try:
        return '"sdpa"' in inspect.getsource(sys.modules[kind.__module__])
    except OSError:
        return True


def register(name: str, function: Any) -> None:
    """Make an attention function known to transformers; its masks are those of torch's kernel."""
    from transformers import AttentionInterface
    from transformers.masking_utils import AttentionMaskInterface, sdpa_mask

    AttentionInterface.register(name, function)
    AttentionMaskInterface.register(name, sdpa_mask)


def attention(
    module: Any,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    **options: Any,
) -> tuple[torch.Tensor, None]:
    """An attention function of transformers.

    Args:
        module: the attention layer.
        query: [R, H, T, D]
        key: [R, H, S, D], or with fewer heads, each for several of the queries.
        value: [R, H, S, D], as the keys.
        attention_mask: [R, 1, 1 or T, S] what is attended to, as truth values or as what is added to the scores.
        options: as transformers' attention functions take them.

    Returns:
        [R, T, H, D], and None for the weights.
    """
    from transformers.integrations.sdpa_attention import sdpa_attention_forward

    if _pays(module, query, key, attention_mask, options):
        return attention_by_products(module, query, key, value, attention_mask, **options)
    output, _ = sdpa_attention_forward(module, query, key, value, attention_mask, **options)
    return output, None


def attention_by_products(
    module: Any,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    **options: Any,
) -> tuple[torch.Tensor, None]:
    """What `attention` returns, by two matrix products and a softmax; causal without a mask if T = S only."""
    rows, heads, tokens, size = query.shape
    shared = heads // key.shape[1]
    if shared > 1:
        key, value = key.repeat_interleave(shared, dim=1), value.repeat_interleave(shared, dim=1)
    scaling = options.get("scaling")
    if attention_mask is None and tokens > 1 and _is_causal(module, options):
        attention_mask = torch.ones(1, 1, tokens, tokens, dtype=torch.bool).tril()
    bias = _bias(query, key, attention_mask, options.get("position_bias"))
    scores = torch.baddbmm(
        bias.expand(rows, heads, -1, -1).flatten(0, 1),
        query.flatten(0, 1),
        key.flatten(0, 1).transpose(1, 2),
        alpha=size**-0.5 if scaling is None else scaling,
    )
    weights = torch.nn.functional.dropout(scores.softmax(dim=-1), options.get("dropout", 0.0))
    output = torch.bmm(weights, value.flatten(0, 1))
    return output.view(rows, heads, tokens, -1).transpose(1, 2).contiguous(), None


def _pays(
    module: Any, query: torch.Tensor, key: torch.Tensor, attention_mask: torch.Tensor | None, options: dict[str, Any]
) -> bool:
    """Whether products are the faster way, and know what to attend to."""
    tokens, attended = query.shape[2], key.shape[2]
    if not torch.is_grad_enabled() or not (query.requires_grad or key.requires_grad):
        return False
    if query.device.type != "cpu" or query.dtype != torch.bfloat16 or attended > LONGEST:
        return False
    if options.get("softcap") is not None or options.get("cache") is not None:
        return False
    return attention_mask is not None or tokens in (1, attended) or not _is_causal(module, options)


def _is_causal(module: Any, options: dict[str, Any]) -> bool:
    """Whether a token attends to none behind it, where no mask says what it attends to."""
    said = options.get("is_causal")
    return bool(getattr(module, "is_causal", True) if said is None else said)


def _bias(
    query: torch.Tensor, key: torch.Tensor, attention_mask: torch.Tensor | None, position_bias: torch.Tensor | None
) -> torch.Tensor:
    """What is added to scores, in a shape that broadcasts to [R, H, T, S]."""
    bias = query.new_zeros(1, 1, 1, key.shape[2]) if position_bias is None else position_bias.to(query.dtype)
    if attention_mask is None:
        return bias
    if attention_mask.dtype != torch.bool:
        return bias + attention_mask.to(query.dtype)
    return bias.masked_fill(~attention_mask, torch.finfo(query.dtype).min)
