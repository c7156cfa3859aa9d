"""Attention by matrix products gives what torch's fused kernel gives, and is taken where it was made for alone."""

from __future__ import annotations

import pickle
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import BertConfig, BertModel, FalconConfig, FalconForCausalLM
from transformers.integrations.sdpa_attention import sdpa_attention_forward

from ragstone.encoders.attention import LONGEST, NAME, attention, use_attention
from ragstone.encoders.text_encoder import TextEncoder
from tests.encoders.conftest import TEXTS

ROWS, HEADS, SIZE = 3, 4, 16
PADDED = torch.ones(ROWS, 1, 1, 9, dtype=torch.bool)
PADDED[1, ..., 5:] = PADDED[2, ..., 1:] = False
ADDED = torch.zeros(ROWS, 1, 7, 9).masked_fill(~PADDED, torch.finfo(torch.bfloat16).min)
CAUSAL = torch.ones(1, 1, 9, 9, dtype=torch.bool).tril()
BIAS = torch.linspace(-2, 2, HEADS * 7 * 9).view(1, HEADS, 7, 9)


class Operations(TorchDispatchMode):
    """The names of the operations that torch does."""

    def __init__(self) -> None:
        super().__init__()
        self.names: set[str] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.names.add(func.overloadpacket.__name__)
        return func(*args, **(kwargs or {}))


@contextmanager
def by_products(expected: bool) -> Iterator[None]:
    with Operations() as operations:
        yield
    fused = any("scaled_dot_product" in name for name in operations.names)
    assert (fused, "baddbmm" in operations.names) == (not expected, expected)


def layer(is_causal: bool = False, groups: int = 1) -> Any:
    return SimpleNamespace(is_causal=is_causal, num_key_value_groups=groups)


def inputs(
    tokens: int, attended: int, kv_heads: int = HEADS, dtype: torch.dtype = torch.bfloat16
) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(tokens)
    shapes = [(HEADS, tokens), (kv_heads, attended), (kv_heads, attended)]
    made = [torch.randn(ROWS, heads, length, SIZE, generator=generator) for heads, length in shapes]
    return [each.to(dtype).requires_grad_() for each in made]


def with_gradients(function: Any, module: Any, given: list[torch.Tensor], **options: Any) -> list[torch.Tensor]:
    output, _ = function(module, *given, **options)
    weights = torch.linspace(-1, 1, output.numel(), dtype=output.dtype).view(output.shape)
    return [output, *torch.autograd.grad(output, given, weights)]


@pytest.mark.parametrize(
    ("module", "tokens", "kv_heads", "options"),
    [
        (layer(), 7, HEADS, {"attention_mask": PADDED}),
        (layer(), 7, HEADS, {"attention_mask": PADDED.expand(-1, -1, 7, -1), "scaling": 1.0}),
        (layer(), 7, HEADS, {"attention_mask": ADDED}),
        (layer(), 7, HEADS, {"attention_mask": None}),
        (layer(), 7, HEADS, {"attention_mask": PADDED, "position_bias": BIAS}),
        (layer(), 7, HEADS, {"attention_mask": None, "position_bias": BIAS}),
        (layer(True), 9, HEADS, {"attention_mask": None}),
        (layer(True), 9, HEADS, {"attention_mask": CAUSAL & PADDED}),
        (layer(True), 9, HEADS, {"attention_mask": None, "is_causal": False}),
        (layer(True), 1, HEADS, {"attention_mask": None}),
        (layer(True, groups=2), 9, HEADS // 2, {"attention_mask": CAUSAL}),
    ],
)
def test_output_and_gradients(module: Any, tokens: int, kv_heads: int, options: dict[str, Any]) -> None:
    """As near to what float64 gives as bfloat16 is, and no further off than the kernel is, give or take a rounding."""
    given = inputs(tokens, 9, kv_heads)
    with by_products(True):
        found = with_gradients(attention, module, given, **options)
    kernel = with_gradients(sdpa_attention_forward, module, given, **options)
    exact_options = {
        name: value.double() if isinstance(value, torch.Tensor) and value.dtype != torch.bool else value
        for name, value in options.items()
    }
    exact = with_gradients(sdpa_attention_forward, module, [each.double() for each in given], **exact_options)
    for ours, theirs, true in zip(found, kernel, exact, strict=True):
        assert ours.shape == true.shape
        off, kernel_off = ((each.double() - true).norm() / true.norm() for each in (ours, theirs))
        assert off < max(0.01, 1.5 * kernel_off)


def test_the_kernel_does_the_rest() -> None:
    """Without gradients, in float32, over long contexts, and where a causal layer says nothing of what came before."""
    plain = {"attention_mask": None}
    with by_products(False), torch.no_grad():
        attention(layer(), *inputs(7, 9), **plain)
    with by_products(False):
        attention(layer(), *inputs(7, 9, dtype=torch.float32), **plain)
    with by_products(False):
        attention(layer(), *inputs(1, LONGEST + 1), **plain)
    with by_products(False):
        attention(layer(True), *inputs(7, 9), **plain)


def test_dropout_leaves_the_mean() -> None:
    query, key, _ = inputs(64, 64)
    value = torch.ones_like(key)
    output, _ = attention(layer(), query, key, value, attention_mask=None, dropout=0.5)
    assert output.std() > 0.01
    assert abs(output.float().mean().item() - 1) < 0.02


def test_an_encoder_trains_by_it(encoder: TextEncoder) -> None:
    """Under autocast its gradients are those of the kernel, but for the rounding."""
    gradients = []
    for implementation in (NAME, "sdpa"):
        encoder.model.set_attn_implementation(implementation)
        encoder.zero_grad()
        with by_products(implementation == NAME), torch.autocast("cpu", torch.bfloat16):
            encoder(**encoder.tokenize(TEXTS)).square().sum().backward()
        gradients.append(
            torch.cat([each.grad.flatten() for each in encoder.model.parameters() if each.grad is not None])
        )
    assert torch.nn.functional.cosine_similarity(*gradients, dim=0) > 0.999


def test_an_encoder_embeds_in_another_process(encoder: TextEncoder, tmp_path: Path) -> None:
    """A Ray worker gets it pickled, and has imported nothing."""
    kept, found = tmp_path / "encoder.pickle", tmp_path / "vectors.npy"
    kept.write_bytes(pickle.dumps(encoder))
    code = (
        "import pickle, sys, numpy; encoder = pickle.load(open(sys.argv[1], 'rb')); "
        "numpy.save(sys.argv[2], encoder.embed(sys.argv[3:]))"
    )
    subprocess.run([sys.executable, "-c", code, kept, found, *TEXTS], check=True)
    np.testing.assert_array_equal(np.load(found), encoder.embed(TEXTS))


SMALL: dict[str, Any] = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1, "vocab_size": 8}


@pytest.mark.parametrize(
    ("kind", "config", "given", "expected"),
    [
        (BertModel, BertConfig(intermediate_size=8, **SMALL), "sdpa", NAME),
        (BertModel, BertConfig(intermediate_size=8, **SMALL), "eager", "eager"),
        (FalconForCausalLM, FalconConfig(**SMALL), "sdpa", "sdpa"),
    ],
    ids=["fused", "eager", "names the kernel in its own code"],
)
def test_which_models_attend_by_it(kind: Any, config: Any, given: str, expected: str) -> None:
    model = kind._from_config(config, attn_implementation=given)
    use_attention(model)
    assert model.config._attn_implementation == expected
