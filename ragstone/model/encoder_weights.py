"""A question encoder's weights in a RAG checkpoint that does not hold the generator's."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from ragstone.errors import InputError, one_line

FILE_NAME = "model.safetensors"
PREFIX = "rag.question_encoder."
"""As in transformers' RAG checkpoints."""


def save_encoder_weights(model: Any, folder: Path) -> None:
    """Write the weights of a transformers encoder into `folder`."""
    weights = {f"{PREFIX}{name}": tensor.detach().cpu().contiguous() for name, tensor in model.state_dict().items()}
    save_file(weights, folder / FILE_NAME, metadata={"format": "pt"})


def load_encoder_weights(model: Any, folder: Path) -> None:
    """Put the weights in `folder` into a transformers encoder of the same shape.

    Raises:
        InputError: the file cannot be read, or holds another model's weights.
    """
    path = folder / FILE_NAME
    try:
        weights = load_file(path)
        model.load_state_dict({name.removeprefix(PREFIX): tensor for name, tensor in weights.items()})
    except (OSError, SafetensorError, RuntimeError) as error:
        reason = one_line(error, 200)
        raise InputError(f"{path} cannot be used ({reason}); copy the checkpoint again, whole.") from error
