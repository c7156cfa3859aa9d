"""Dense modules of sentence-transformers: layers behind the pooling, which change what a vector is and its length.

Each lies in a folder of its own (2_Dense) with config.json and the weights of one linear layer.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import nn

from ragstone.encoders.files import read_json, write_json
from ragstone.errors import InputError, one_line

ACTIVATIONS = ("Identity", "Tanh", "ReLU", "GELU", "Sigmoid", "SiLU", "ELU", "LeakyReLU")
"""Classes of torch.nn that may stand behind the linear layer. Any other name may be a program."""
CONFIG = "config.json"
SAFE, PICKLED = "model.safetensors", "pytorch_model.bin"
FindFile = Callable[[str], Path | None]
"""From a file's path within a model to the file; None where the model has none."""


class Dense(nn.Module):
    """activation(linear(x)) of vectors [B, in_features]."""

    def __init__(self, linear: nn.Linear, activation: nn.Module) -> None:
        super().__init__()
        self.linear = linear
        self.activation = activation

    def forward(self, vectors: torch.Tensor) -> torch.Tensor:
        """Vectors [B, out_features]."""
        found: torch.Tensor = self.activation(self.linear(vectors.to(self.linear.weight.dtype)))
        return found


def read_dense(find_file: FindFile, paths: list[str], name: str, width: int) -> nn.Sequential | None:
    """The Dense modules at `paths` of the model `name`, in order; None where there are none.

    Args:
        find_file: gives the model's files.
        paths: folders of the modules within the model.
        name: what messages call the model.
        width: length of the vectors that the first gets.

    Raises:
        InputError: a module that is damaged or does not fit, or does what Ragstone cannot.
    """
    modules = []
    for path in paths:
        module = _read_module(find_file, path, name)
        if module.linear.in_features != width:
            raise InputError(
                f"{name}: {path} takes vectors of {module.linear.in_features} dimensions, but gets {width}; save the "
                "model again."
            )
        width = module.linear.out_features
        modules.append(module)
    return nn.Sequential(*modules) if modules else None


def save_dense(module: Any, folder: Path) -> None:
    """Write a Dense module into `folder`, where sentence-transformers and `read_dense` find it."""
    folder.mkdir(parents=True, exist_ok=True)
    linear, activation = module.linear, type(module.activation)
    config = {
        "in_features": linear.in_features,
        "out_features": linear.out_features,
        "bias": linear.bias is not None,
        "activation_function": f"{activation.__module__}.{activation.__qualname__}",
    }
    write_json(folder / CONFIG, config)
    weights = {f"linear.{name}": tensor.detach().cpu().contiguous() for name, tensor in linear.state_dict().items()}
    save_file(weights, folder / SAFE, metadata={"format": "pt"})


def _read_module(find_file: FindFile, path: str, name: str) -> Dense:
    found = find_file(f"{path}/{CONFIG}")
    config = {} if found is None else read_json(found)
    size, length = config.get("in_features"), config.get("out_features")
    if not (isinstance(size, int) and isinstance(length, int) and min(size, length) > 0):
        raise InputError(f"{name}: {path}/{CONFIG} names no in_features and out_features; save the model again.")
    source = config.get("module_input_name") or "sentence_embedding"
    if source != "sentence_embedding" or (config.get("module_output_name") or source) != source:
        raise InputError(
            f"{name}: {path} changes {source!r} and not the pooled vector, which Ragstone cannot apply; take another "
            "encoder."
        )
    if config.get("use_residual"):
        raise InputError(
            f"{name}: {path} adds its input to its output (use_residual), which Ragstone cannot apply; take another "
            "encoder."
        )
    module = Dense(nn.Linear(size, length, bias=bool(config.get("bias", True))), _activation(config, path, name))
    weights = _read_weights(find_file, path, name)
    try:
        module.load_state_dict({key: tensor.float() for key, tensor in weights.items()})
    except (RuntimeError, AttributeError) as error:
        reason = one_line(error, 200)
        raise InputError(f"{name}: the weights in {path} do not fit its {CONFIG} ({reason}); save it again.") from error
    return module


def _activation(config: Any, path: str, name: str) -> nn.Module:
    """That of the config; sentence-transformers' own default where it names none."""
    spelt = str(config.get("activation_function", "torch.nn.modules.activation.Tanh") or "torch.nn.Identity")
    kind = spelt.rsplit(".", 1)[-1]
    if not spelt.startswith("torch.nn.") or kind not in ACTIVATIONS:
        known = ", ".join(ACTIVATIONS)
        raise InputError(
            f"{name}: {path} has the activation {spelt!r}, but Ragstone knows only {known}; take another encoder."
        )
    module: nn.Module = getattr(nn, kind)()
    return module


def _read_weights(find_file: FindFile, path: str, name: str) -> dict[str, torch.Tensor]:
    safe = find_file(f"{path}/{SAFE}")
    found = safe or find_file(f"{path}/{PICKLED}")
    if found is None:
        raise InputError(f"{name}: {path} has neither {SAFE} nor {PICKLED}; save the model again.")
    try:
        weights: dict[str, torch.Tensor]
        weights = load_file(found) if safe else torch.load(found, map_location="cpu", weights_only=True)
        return weights
    except Exception as error:  # torch's unpickler fails in many ways
        reason = one_line(error, 200)
        raise InputError(f"{name}: the weights in {path} cannot be read ({reason}); save the model again.") from error
