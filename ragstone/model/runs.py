"""Texts of like length that a model reads together."""

from __future__ import annotations

from collections.abc import Sequence

import torch

CPU_TOKENS_AT_ONCE = 1024
GPU_TOKENS_AT_ONCE = 65536
"""Tokens that are read together. With fewer, less is padded, and what a layer gives stays in a CPU's cache; with too
few the processor is no longer busy."""


def tokens_at_once(device: torch.device) -> int:
    """How many tokens, padding included, keep `device` busy."""
    return CPU_TOKENS_AT_ONCE if device.type == "cpu" else GPU_TOKENS_AT_ONCE


def runs_of_like_length(lengths: Sequence[int], tokens: int) -> list[list[int]]:
    """The rows from the longest to the shortest, in runs of at most so many tokens, padding included, or one row.

    All runs but the last have as many rows as their first row's length allows, so that equal lengths make equal shapes.
    """
    runs: list[list[int]] = []
    for row in sorted(range(len(lengths)), key=lengths.__getitem__, reverse=True):
        if runs and (len(runs[-1]) + 1) * lengths[runs[-1][0]] <= tokens:
            runs[-1].append(row)
        else:
            runs.append([row])
    return runs


def padded_right(rows: Sequence[Sequence[int]], length: int, filler: int) -> torch.Tensor:
    """Token ids [R, `length`], with `filler` behind them."""
    return torch.tensor([[*row, *[filler] * (length - len(row))] for row in rows])
