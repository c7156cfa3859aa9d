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
"""The reference's names to those of transformers."""
FUSED = {"cpu", "cuda"}
"""Devices on which torch's AdamW is one kernel."""


@dataclass(frozen=True)
class OptimizerSettings:
    """How weights are changed; names as in the reference."""

    learning_rate: float = 3e-5
    schedule: Schedule = "linear"
    weight_decay: float = 0.0
    adam_epsilon: float = 1e-8
    warmup_steps: int = 0
    adafactor: bool = False
    question_encoder_learning_rate: float | None = None
    """Another step size for a RAG model's question encoder; the same as the generator's where None."""


def make_optimizer(model: nn.Module, settings: OptimizerSettings, scaled: bool = False) -> torch.optim.Optimizer:
    """AdamW, or Adafactor with a given step size; biases and normalisation weights (vectors) are not decayed.

    The first group has the generator's step size. `scaled` says that a gradient scaler of accelerate's steps it.
    """
    own = settings.question_encoder_learning_rate
    groups: dict[tuple[bool, bool], list[nn.Parameter]] = {}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            apart = own is not None and name.startswith("question_encoder.")
            groups.setdefault((apart, parameter.ndim < 2), []).append(parameter)
    grouped = [
        {
            "params": groups[apart, vectors],
            "lr": own if apart else settings.learning_rate,
            "weight_decay": 0.0 if vectors else settings.weight_decay,
        }
        for apart, vectors in sorted(groups)
    ]
    if settings.adafactor:
        from transformers.optimization import Adafactor

        return Adafactor(grouped, lr=settings.learning_rate, scale_parameter=False, relative_step=False)
    # Fused: one pass over weights, gradients and moments instead of one for each operation, in float32 where weights
    # are float16, in which epsilon is zero. With it, accelerate would not learn that the scaler left a step out.
    kinds = {parameter.device.type for group in groups.values() for parameter in group}
    fused = True if not scaled and kinds <= FUSED else None
    return torch.optim.AdamW(grouped, lr=settings.learning_rate, eps=settings.adam_epsilon, fused=fused)


def make_schedule(optimizer: torch.optim.Optimizer, settings: OptimizerSettings, total_steps: int) -> Any:
    """The learning-rate schedule over `total_steps` optimiser steps, warm-up included."""
    from transformers.optimization import get_scheduler

    return get_scheduler(SCHEDULES[settings.schedule], optimizer, settings.warmup_steps, total_steps)


def restore_schedule(schedule: Any, state: dict[str, Any]) -> None:
    """Put a schedule, and its optimiser's learning rates, to where another one was, whose total steps may differ."""
    rates = [
        base * factor(state["last_epoch"]) for base, factor in zip(state["base_lrs"], schedule.lr_lambdas, strict=True)
    ]
    schedule.load_state_dict({**state, "_last_lr": rates})
    for group, rate in zip(schedule.optimizer.param_groups, rates, strict=True):
        group["lr"] = rate
