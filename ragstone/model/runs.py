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
    """The rows in order of length, in runs of at most so many tokens, or one row, padded to the longest of each."""
    runs: list[list[int]] = []
    for row in sorted(range(len(lengths)), key=lengths.__getitem__):
        if runs and (len(runs[-1]) + 1) * lengths[row] <= tokens:
            runs[-1].append(row)
        else:
            runs.append([row])
    return runs
