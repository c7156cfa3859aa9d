"""From a transformer's output to one vector per text.

Shapes: B texts, S tokens, D dimensions.
"""

from __future__ import annotations

from typing import Any, Literal, get_args

import torch

Pooling = Literal["pooler", "cls", "mean", "last"]
POOLINGS: tuple[Pooling, ...] = get_args(Pooling)


def pool(output: Any, attention_mask: torch.Tensor, pooling: Pooling) -> torch.Tensor:
    """Vectors [B, D] of a transformers model's `output` for tokens with `attention_mask` [B, S].

    "pooler" takes the model's own pooler_output (DPR's encoders), "cls" the first token's state, "mean" the average
    over unmasked tokens (sentence-transformers' default), "last" the last unmasked token's state, whichever side the
    padding is on.
    """
    if pooling == "pooler":
        return output.pooler_output
    states = output.last_hidden_state
    if pooling == "cls":
        return states[:, 0]
    if pooling == "mean":
        # A sum over many tokens needs more digits than bf16 has.
        weights = attention_mask.unsqueeze(-1).float()
        return (states.float() * weights).sum(dim=1) / weights.sum(dim=1).clamp(min=1)
    positions = torch.arange(attention_mask.shape[1], device=attention_mask.device)
    last = (positions * attention_mask).argmax(dim=1)
    return states[torch.arange(len(states), device=states.device), last]
