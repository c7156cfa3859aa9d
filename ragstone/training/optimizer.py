"""Optimiser and learning-rate schedule from plain settings."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import nn

Schedule = Literal["linear", "cosine", "cosine_w_restarts", "polynomial"]

SCHEDULES: dict[Schedule, str] = {
    "linear": "linear",
    "cosine": "cosine",
    "cosine_w_restarts": "cosine_with_restarts",
    "polynomial": "polynomial",
}
UNDECAYED = ("bias", "norm.weight", "LayerNorm.weight", "layernorm_embedding.weight", "layer_norm.weight")


@dataclass(frozen=True)
class OptimizerSettings:
    """How weights are changed; names as in the reference."""

    learning_rate: float = 3e-5
    schedule: Schedule = "linear"
    weight_decay: float = 0.0
    adam_epsilon: float = 1e-8
    warmup_steps: int = 0
    adafactor: bool = False


def make_optimizer(model: nn.Module, settings: OptimizerSettings) -> torch.optim.Optimizer:
    """AdamW, or Adafactor with a given step size; biases and normalisation weights are not decayed."""
    trained = [(name, parameter) for name, parameter in model.named_parameters() if parameter.requires_grad]
    groups = [
        {
            "params": [p for name, p in trained if not name.endswith(UNDECAYED)],
            "weight_decay": settings.weight_decay,
        },
        {"params": [p for name, p in trained if name.endswith(UNDECAYED)], "weight_decay": 0.0},
    ]
    if settings.adafactor:
        from transformers.optimization import Adafactor

        return Adafactor(groups, lr=settings.learning_rate, scale_parameter=False, relative_step=False)
    return torch.optim.AdamW(groups, lr=settings.learning_rate, eps=settings.adam_epsilon)


def make_schedule(optimizer: torch.optim.Optimizer, settings: OptimizerSettings, total_steps: int) -> Any:
    """The learning-rate schedule over `total_steps` optimiser steps, warm-up included."""
    from transformers.optimization import get_scheduler

    return get_scheduler(SCHEDULES[settings.schedule], optimizer, settings.warmup_steps, total_steps)
