"""Which arithmetic `auto` means, held against what torch says of the processor."""

from __future__ import annotations

import torch

from ragstone.encoders.precision import compute_dtype, fast_bfloat16
from ragstone.encoders.text_encoder import TextEncoder
from tests.encoders.conftest import TEXTS

CPU = torch.device("cpu")


def test_auto_is_bf16_where_torch_says_that_the_cpu_has_it(encoder: TextEncoder) -> None:
    has_it = torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
    if torch.cpu.get_capabilities().get("architecture") == "x86_64":
        assert fast_bfloat16(CPU) == has_it
    assert compute_dtype(CPU, "auto") == (torch.bfloat16 if fast_bfloat16(CPU) else torch.float32)
    same = encoder.embed(TEXTS, precision="bf16" if fast_bfloat16(CPU) else "fp32")
    assert (encoder.embed(TEXTS, precision="auto") == same).all()
