"""Which arithmetic a device does fastest without losing what retrieval and training need."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext

import torch

from ragstone.arithmetic import Precision
from ragstone.errors import InputError

DTYPES: dict[Precision, torch.dtype] = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}

LENGTH_STEP = 16
"""What lengths are multiples of where few shapes are better."""


def best_device() -> torch.device:
    """The first GPU, or the CPU where there is none."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def fast_bfloat16(device: torch.device) -> bool:
    """Whether `device` has instructions for bfloat16, so that it pays."""
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    capabilities = torch.cpu.get_capabilities()
    return any(capabilities.get(name, False) for name in ("avx512_bf16", "amx_bf16", "amx_tile", "bf16"))


def precision_on(device: torch.device, precision: Precision) -> Precision:
    """What `precision` is there; "auto" is bf16 where the hardware has it, else fp32.

    Raises:
        InputError: fp16 on a CPU, which has no fast fp16 arithmetic.
    """
    if precision == "fp16" and device.type == "cpu":
        raise InputError("fp16 needs a GPU; on a CPU use bf16 or leave the precision alone.")
    if precision != "auto":
        return precision
    return "bf16" if fast_bfloat16(device) else "fp32"


def compute_dtype(device: torch.device, precision: Precision) -> torch.dtype:
    """The type to compute in; raises as `precision_on`, whose choice it is."""
    return DTYPES[precision_on(device, precision)]


def padded_length(length: int, device: torch.device, dtype: torch.dtype, limit: int | None = None) -> int:
    """The length that a text of so many tokens is padded to among those of a batch.

    On CPUs, matrices of 16-bit numbers are multiplied by kernels that oneDNN compiles for every shape that it meets for
    the first time, which takes as long as some products. So there must not be too many shapes.

    Args:
        length: tokens.
        device: what computes.
        dtype: of the weights; autocast goes before it.
        limit: tokens at most, where the model has positions for no more.
    """
    if device.type != "cpu" or (dtype.itemsize > 2 and not torch.is_autocast_enabled("cpu")):
        return length
    padded = -(-length // LENGTH_STEP) * LENGTH_STEP
    return padded if limit is None else max(length, min(padded, limit))


def autocast(device: torch.device, precision: Precision) -> AbstractContextManager[object]:
    """A context in which matrix products run in `precision`, with weights that stay as they are. See compute_dtype."""
    dtype = compute_dtype(device, precision)
    return nullcontext() if dtype == torch.float32 else torch.autocast(device.type, dtype=dtype)
