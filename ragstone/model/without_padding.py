"""What a decoder makes of the encoder's states: of tokens, not of padding.

Shapes: R contexts, S context tokens, of which M are no padding, D dimensions.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn


@contextmanager
def only_tokens(states: torch.Tensor, attention_mask: torch.Tensor, decoder: Any) -> Iterator[None]:
    """Let linear layers of `decoder` that are given `states` map only the tokens among them, where that is faster.

    These layers make the keys and values of cross-attention. At padding, which attention does not look at, they give
    zeros. Contexts of one batch differ in length, and half of it may be padding. Where products of matrices are as
    fast as on GPUs or in bfloat16, leaving padding out costs as much as it saves.

    Args:
        states: [R, S, D]
        attention_mask: [R, S], 0 at padding.
        decoder: a module of transformers; where it passes on something else than `states`, nothing changes.
    """
    # What is computed again on the way back would be given all states then.
    recomputes = any(getattr(module, "gradient_checkpointing", False) for module in decoder.modules())
    if recomputes or not _are_multiplied_slowly(states) or attention_mask.all():
        yield
        return
    places = attention_mask.flatten().nonzero().squeeze(1)
    tokens = states.flatten(0, 1).index_select(0, places)
    """[M, D], put together once for all layers."""

    def pack(_: Any, arguments: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, ...] | None:
        return (tokens,) if arguments and arguments[0] is states else None

    def unpack(_: Any, arguments: tuple[torch.Tensor, ...], output: torch.Tensor) -> torch.Tensor | None:
        if not arguments or arguments[0] is not tokens:
            return None
        padded = output.new_zeros(attention_mask.numel(), output.shape[-1])
        return padded.index_copy_(0, places, output).view(*attention_mask.shape, -1)

    handles = []
    for layer in decoder.modules():
        if isinstance(layer, nn.Linear):
            handles += [layer.register_forward_pre_hook(pack), layer.register_forward_hook(unpack)]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _are_multiplied_slowly(states: torch.Tensor) -> bool:
    cpu = states.device.type == "cpu"
    return cpu and not torch.is_autocast_enabled("cpu") and states.dtype in (torch.float32, torch.float64)
