"""Attention by matrix products beside torch's fused kernel for CPUs: python -m benchmarks.attention.

Prints a table of milliseconds per layer, forward alone and with the backward pass, over shapes of the generator and the
encoders. Both ways run in turn; each figure is the median.
"""

from __future__ import annotations

import statistics
import time
from types import SimpleNamespace
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from transformers.integrations.sdpa_attention import sdpa_attention_forward

from benchmarks.machine import commit, processor
from ragstone.encoders.attention import LONGEST, attention_by_products

SHAPES = (
    (10, 4, 100, 100, 64),
    (40, 4, 20, 200, 64),
    (40, 16, 200, 200, 64),
    (8, 12, 160, 160, 64),
    (8, 12, 512, 512, 64),
)
"""Rows, heads, tokens that attend, tokens attended to, dimensions of a head."""
RUNS = 9
LAYER = SimpleNamespace(is_causal=False, training=True, num_key_value_groups=1)


def main() -> None:
    """Time both ways over all shapes and print the table."""
    shown = Table("type", "shape", "pass", "kernel ms", "products ms", "kernel / products")
    for dtype in (torch.float32, torch.bfloat16):
        for shape in SHAPES:
            for trained in (False, True):
                kernel, products = _in_turn(shape, dtype, trained)
                passed = "forward and backward" if trained else "forward"
                figures = (f"{1000 * kernel:.2f}", f"{1000 * products:.2f}", f"{kernel / products:.1f}")
                shown.add_row(str(dtype).removeprefix("torch."), "×".join(map(str, shape)), passed, *figures)
    console = Console(width=120)
    console.print(shown)
    console.print(f"{processor()}, {torch.get_num_threads()} threads, commit {commit()}; used up to {LONGEST} tokens.")


def _in_turn(shape: tuple[int, ...], dtype: torch.dtype, trained: bool) -> tuple[float, float]:
    """Seconds of the kernel and of the products."""
    rows, heads, tokens, attended, size = shape
    query = torch.randn(rows, heads, tokens, size, dtype=dtype)
    key, value = (torch.randn(rows, heads, attended, size, dtype=dtype) for _ in range(2))
    mask = torch.ones(rows, 1, tokens, attended, dtype=torch.bool)
    mask[..., attended * 2 // 3 :] = False
    took: dict[Any, list[float]] = {sdpa_attention_forward: [], attention_by_products: []}
    for _ in range(1 + RUNS):
        for function, seconds in took.items():
            given = [each.detach().requires_grad_(trained) for each in (query, key, value)]
            began = time.perf_counter()
            output, _ = function(LAYER, *given, mask)
            if trained:
                output.backward(torch.ones_like(output))
            seconds.append(time.perf_counter() - began)
    kernel, products = (statistics.median(seconds[1:]) for seconds in took.values())
    return kernel, products


if __name__ == "__main__":
    main()
