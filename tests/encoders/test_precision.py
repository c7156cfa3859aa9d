"""Which arithmetic `auto` means, held against what torch says of the processor."""

from __future__ import annotations

import torch

from ragstone.encoders.precision import compute_dtype, fast_bfloat16, padded_length
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


def test_texts_are_padded_to_few_lengths_where_each_would_have_kernels_of_its_own() -> None:
    def padded(dtype: torch.dtype, device: torch.device = CPU, limit: int | None = None) -> list[int]:
        return [padded_length(length, device, dtype, limit) for length in (0, 1, 16, 17)]

    assert padded(torch.bfloat16) == padded(torch.float16) == [0, 16, 16, 32]
    assert padded(torch.bfloat16, limit=20) == [0, 16, 16, 20]
    assert (
        padded(torch.float32) == padded(torch.float64) == padded(torch.bfloat16, torch.device("cuda")) == [0, 1, 16, 17]
    )
    with torch.autocast("cpu", torch.bfloat16):
        assert padded(torch.float32) == [0, 16, 16, 32]


def test_the_vectors_of_padded_texts_are_those_of_the_texts(encoder: TextEncoder) -> None:
    alone = [encoder(**encoder.tokenize([text]))[0] for text in TEXTS]
    seen: list[int] = []
    hook = encoder.model.register_forward_pre_hook(
        lambda _, arguments, options: seen.append(options["input_ids"].shape[1]), with_kwargs=True
    )
    with torch.autocast("cpu", torch.bfloat16):
        together = encoder(**encoder.tokenize(TEXTS))
    embedded = encoder.embed(TEXTS, precision="bf16")
    hook.remove()
    assert {length % 16 for length in seen} == {0}
    torch.testing.assert_close(together, torch.stack(alone), rtol=0.05, atol=0.05)
    torch.testing.assert_close(torch.from_numpy(embedded), torch.stack(alone).detach(), rtol=0.05, atol=0.05)
