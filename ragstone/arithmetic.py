"""In what numbers models compute, and are kept, as flags name it. Imports nothing heavy: settings use it."""

from __future__ import annotations

from typing import Literal

Precision = Literal["auto", "fp32", "bf16", "fp16"]
"""Of matrix products; auto is bf16 where the hardware has it."""
MixedPrecision = Literal["no", "bf16", "fp16"]
"""Of matrix products in finetune, in accelerate's words."""
WeightType = Literal["float32", "bfloat16", "float16"]
"""Of a generator's weights, by torch's names."""
Quantization = Literal["8bit", "4bit"]
"""Of the layers of a generator whose weights are kept in fewer bits than a type has."""
