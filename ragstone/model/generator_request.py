"""What a user wants changed about a checkpoint's generator when it is opened."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch

from ragstone.arithmetic import Quantization
from ragstone.errors import InputError
from ragstone.model.languages import Languages

HEADS = ("lm_head", "embed_out")
"""What transformers' generators call their layer over the vocabulary, which loses most by rounding."""
PACKED_TOGETHER = 32
"""Outputs of a 4-bit layer that bitsandbytes puts side by side for processors with AVX-512's bfloat16."""


@dataclass(frozen=True)
class GeneratorRequest:
    """None, or nothing, leaves what is recorded."""

    changes: Mapping[str, Any] = field(default_factory=dict)
    """Entries of the generator's config to set (dropout, encoder_layerdrop, ...)."""
    prompt_template: str | None = None
    """Another prompt for a decoder-only generator."""
    chat: bool | None = None
    """Whether its chat template is put around the prompt."""
    languages: Languages = field(default_factory=Languages)
    """What a generator of several languages reads and writes."""
    quantization: Quantization | None = None
    """Keep the generator's linear layers in 8 or 4 bits. They cannot be trained; adapters beside them can."""
    torch_dtype: str | None = None
    """Type of its weights (float32, bfloat16, float16), or of what 4-bit layers compute in; float32 where None."""
    device: torch.device | None = None
    """Where quantised layers are put at once."""

    @property
    def weight_type(self) -> torch.dtype:
        return torch.float32 if self.torch_dtype is None else getattr(torch, self.torch_dtype)

    @property
    def keeps_weights(self) -> bool:
        """Whether the weights are those on the disk, digit for digit."""
        return self.quantization is None and self.weight_type == torch.float32

    def loading_options(self, question_encoder: str) -> dict[str, Any]:
        """What from_pretrained is told of quantisation, which leaves the modules under `question_encoder` alone.

        Raises:
            InputError: bitsandbytes is not installed.
        """
        # In full first, and the generator in another type later: the question encoder stays as it is.
        full: dict[str, Any] = {"dtype": torch.float32}
        if self.quantization is None:
            return full
        from importlib.util import find_spec

        from transformers import BitsAndBytesConfig

        if find_spec("bitsandbytes") is None:
            raise InputError(
                f"--quantization {self.quantization} needs bitsandbytes, which is not installed; "
                "pip install 'ragstone[quantization]'."
            )
        config = BitsAndBytesConfig(
            load_in_8bit=self.quantization == "8bit",
            load_in_4bit=self.quantization == "4bit",
            llm_int8_skip_modules=[question_encoder, *HEADS],
            bnb_4bit_compute_dtype=self.weight_type,
            bnb_4bit_quant_type="nf4",
        )
        return {**full, "quantization_config": config, "device_map": {"": self.device or "cpu"}}


def spare_odd_layers(model: Any) -> None:
    """Have 4-bit layers that are not made of whole blocks computed as on processors without AVX-512's bfloat16.

    For those that have it, bitsandbytes packs the weights, and fails at such layers.
    """
    for module in model.modules():
        if not getattr(module, "support_avx512bf16_for_cpu", False):
            continue
        if module.out_features % PACKED_TOGETHER or module.in_features % module.weight.blocksize:
            module.support_avx512bf16_for_cpu = False
