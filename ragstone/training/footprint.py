"""How much memory the weights of a run take, with all that training keeps for each: from the shapes in the files."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from ragstone.arithmetic import Quantization, WeightType
from ragstone.model.checkpoint import ADAPTER
from ragstone.model.encoder_weights import PREFIX
from ragstone.model.lora import LoraSettings

FULL = 4
"""Bytes of a float32. The question encoder and adapters have it whatever the generator has."""
TYPES = {"float32": FULL, "bfloat16": 2, "float16": 2}
QUANTIZED = {"8bit": 1.0, "4bit": 0.5 + FULL / 64}
"""Bytes of a weight. Those of 4 bits have a scale in float32 for each 64."""
TABLES = ("shared", "wte", "wpe", "lm_head", "relative_attention_bias")
"""Layers, besides those that have "embed" in their name, that stay as they are when the linear ones are quantised or
get adapters."""

Shapes = dict[str, tuple[int, ...]]
"""Names of weights to their shapes."""


@dataclass(frozen=True)
class WeightUse:
    """What is done with a model's weights."""

    trains: bool = True
    torch_dtype: WeightType = "float32"
    """Of the generator."""
    quantization: Quantization | None = None
    """Of the generator's linear layers."""
    lora: LoraSettings | None = None
    """Adapters that are trained instead of the generator."""
    encoder_rests: bool = False
    """Whether the question encoder is not trained."""
    adafactor: bool = False


@dataclass(frozen=True)
class _Weights:
    """Those of a model's parts."""

    encoder: Shapes
    generator: Shapes
    adapters: Shapes | None
    """None where the model has none yet."""


def footprint(model: Path, use: WeightUse, processes: int) -> int | None:
    """Bytes that a process holds at least, activations left out.

    Args:
        model: folder of a RAG checkpoint, of adapters alone, or of a generator.
        use: what is done with it.
        processes: how many train together.

    Returns:
        None where the weights, or those that adapters are for, are not in a folder on this machine.
    """
    weights = _read(model)
    if weights is None:
        return None
    # AdamW has two averages for each weight; Adafactor's, of rows and columns, are small. Processes that train
    # together exchange gradients through copies.
    kept = 2 + (processes > 1) + (0 if use.adafactor else 2)
    adapters = weights.adapters
    if adapters is None and use.lora is not None:
        adapters = _new_adapters(weights.generator, use.lora)
    alone = use.trains and adapters is None
    held = FULL * _count(weights.encoder) * (kept if use.trains and not use.encoder_rests else 1)
    held += FULL * _count(adapters or {}) * (kept if use.trains else 1)
    if use.quantization is None:
        held += TYPES[use.torch_dtype] * _count(weights.generator) * (kept if alone else 1)
        return held
    rounded = _count(_linear(weights.generator))
    held += FULL * (_count(weights.generator) - rounded) + math.ceil(QUANTIZED[use.quantization] * rounded)
    return held


def read_config(model: Path) -> dict[str, Any]:
    """A folder's config.json; empty where there is none that can be read, which is said when the model is opened."""
    try:
        config = json.loads((model / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return config if isinstance(config, dict) else {}


def _read(model: Path) -> _Weights | None:
    there = dict(_shapes(model))
    if not there:
        return None
    encoder = {name: shape for name, shape in there.items() if name.startswith(PREFIX)}
    base = (read_config(model).get("ragstone") or {}).get("adapter_base")
    if base is None:
        return _Weights(encoder, {name: shape for name, shape in there.items() if name not in encoder}, None)
    whole = _read(Path(base))
    return None if whole is None else _Weights(encoder, whole.generator, dict(_shapes(model / ADAPTER)))


def _shapes(folder: Path) -> Iterator[tuple[str, tuple[int, ...]]]:
    """What the weight files in a folder hold, without reading it."""
    paths = sorted(folder.glob("*.safetensors"))
    for path in paths:
        yield from _safe_shapes(path)
    for path in () if paths else sorted(folder.glob("pytorch_model*.bin")):
        yield from _pickled_shapes(path)


def _safe_shapes(path: Path) -> Iterator[tuple[str, tuple[int, ...]]]:
    """Those of a safetensors file; for one that is damaged, as many weights as its size has room for."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="pt") as weights:
            for name in weights.keys():  # noqa: SIM118 - it is no mapping
                yield name, tuple(weights.get_slice(name).get_shape())
    except SafetensorError:  # what is wrong with the file is said when the model is opened
        yield _by_size(path)


def _pickled_shapes(path: Path) -> Iterator[tuple[str, tuple[int, ...]]]:
    """Those of a file of torch's; for one that cannot be mapped, as many weights as its size has room for."""
    try:
        weights = torch.load(path, map_location="cpu", mmap=True, weights_only=True)
    except Exception:  # torch has many; what is wrong with the file is said when the model is opened
        yield _by_size(path)
        return
    seen = set()
    for name, tensor in weights.items():
        # Weights that two layers share stand there twice, in one place.
        place = tensor.data_ptr()
        if place not in seen:
            yield name, tuple(tensor.shape)
        seen.add(place)


def _by_size(path: Path) -> tuple[str, tuple[int, ...]]:
    """A file whose weights cannot be seen, as a single one."""
    return path.name, (path.stat().st_size // FULL,)


def _linear(shapes: Shapes, names: tuple[str, ...] = ()) -> Shapes:
    """The matrices of linear layers; only of those that are called so, where `names` are given."""
    found: Shapes = {}
    for name, shape in shapes.items():
        path, _, kind = name.rpartition(".")
        layer = path.rpartition(".")[2]
        linear = kind == "weight" and len(shape) == 2 and layer not in TABLES and "embed" not in layer
        if linear and (not names or layer in names):
            found[name] = shape
    return found


def _new_adapters(generator: Shapes, lora: LoraSettings) -> Shapes:
    return {name: (lora.r, sum(shape)) for name, shape in _linear(generator, lora.target_modules).items()}


def _count(shapes: Shapes) -> int:
    return sum(map(math.prod, shapes.values()))
