"""Checking a checkpoint: a RAG model, a generator alone or a text encoder."""

from __future__ import annotations

import json
import pickle
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from ragstone.encoders.dense import PICKLED, SAFE
from ragstone.encoders.load import load_encoder, pretrained
from ragstone.encoders.recorded import dense_paths
from ragstone.errors import InputError, one_line
from ragstone.model.architecture import is_generator
from ragstone.model.checkpoint import ADAPTER, DENSE, load_checkpoint
from ragstone.model.open import ModelRequest, open_model
from ragstone.progress import track
from ragstone.weights import load_tensors

REMEDY = "copy it again from where it was saved, or save the checkpoint again"


@dataclass(frozen=True)
class CheckpointReport:
    """What a sound checkpoint holds."""

    folder: Path
    model_type: str
    """rag_sequence, rag_token, or the architecture of a generator or text encoder."""
    files: int
    """Files of weights."""
    safetensors: bool
    """Whether the weights are safetensors; else they are pickled, which Ragstone reads as weights only."""
    tensors: int
    parameters: int
    vocabularies: dict[str, tuple[int, int]]
    """Part to the numbers of its tokenizer's tokens and of its embeddings."""


def verify_checkpoint(folder: Path) -> CheckpointReport:
    """Check a checkpoint: files whole, all weights finite and there, tokenizers that fit the vocabularies.

    Raises:
        InputError: a damaged checkpoint; names the file and what to do.
    """
    from transformers import AutoConfig

    files = [*_weight_files(folder), *sorted((folder / ADAPTER).glob("*.safetensors")), *_dense_files(folder)]
    tensors = parameters = 0
    for path in track(files, "Weights"):
        for name, tensor in _tensors(path):
            if tensor.is_floating_point() and not torch.isfinite(tensor).all():
                raise InputError(f"{path} is damaged: {name} holds numbers that are not finite; {REMEDY}.")
            tensors += 1
            parameters += tensor.numel()
    config = pretrained(AutoConfig, str(folder), "config.json")
    model_type, parts = _open(folder, config)
    vocabularies = {}
    for part, (model, tokenizer) in parts.items():
        # The highest id counts: a vocabulary may have gaps.
        tokens, embeddings = max(tokenizer.get_vocab().values()) + 1, model.get_input_embeddings().num_embeddings
        if tokens > embeddings:
            raise InputError(
                f"The tokenizer of the {part} in {folder} has {tokens} tokens, but the {part} knows {embeddings}; put "
                "the tokenizer there that it was trained with."
            )
        vocabularies[part] = (tokens, embeddings)
    safe = all(path.suffix == ".safetensors" for path in files)
    return CheckpointReport(folder, model_type, len(files), safe, tensors, parameters, vocabularies)


def _weight_files(folder: Path) -> list[Path]:
    """The files that hold the weights: one, or all that an index lists."""
    for stem, suffix in (("model", ".safetensors"), ("pytorch_model", ".bin")):
        single, index = folder / f"{stem}{suffix}", folder / f"{stem}{suffix}.index.json"
        if single.is_file():
            return [single]
        if index.is_file():
            return _listed(index)
    raise InputError(f"{folder} holds a config.json but no weights (model.safetensors); {REMEDY}.")


def _dense_files(folder: Path) -> list[Path]:
    """Those of Dense modules: behind a RAG checkpoint's question encoder, or behind the encoder in the folder."""
    modules = [*sorted((folder / DENSE).glob("*")), *(folder / path for path in dense_paths(str(folder)))]
    there = [[module / name for name in (SAFE, PICKLED) if (module / name).is_file()] for module in modules]
    # The first is the one that is read; where there is none, opening the model says so.
    return [paths[0] for paths in there if paths]


def _listed(index: Path) -> list[Path]:
    try:
        names = sorted(set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()))
    except (OSError, ValueError, KeyError, AttributeError, TypeError) as error:
        raise InputError(f"{index} is damaged; {REMEDY}.") from error
    for name in names:
        if not (index.parent / name).is_file():
            raise InputError(f"{index.parent / name} is missing, but {index.name} lists it; {REMEDY}.")
    return [index.parent / name for name in names]


def _tensors(path: Path) -> Iterator[tuple[str, torch.Tensor]]:
    """The weights in a file, one in memory at a time where the format allows it."""
    from safetensors import SafetensorError, safe_open

    try:
        if path.suffix == ".safetensors":
            with safe_open(path, framework="pt") as file:
                for name in file.keys():  # noqa: SIM118 - the file is no mapping
                    yield name, file.get_tensor(name)
        else:
            weights = load_tensors(path)
            if not isinstance(weights, dict) or not all(isinstance(each, torch.Tensor) for each in weights.values()):
                raise ValueError("it holds no tensors by name")
            yield from weights.items()
    except pickle.UnpicklingError as error:
        raise InputError(
            f"{path} holds more than tensors and plain values, which is not unpickled, or is damaged; {REMEDY}."
        ) from error
    except (SafetensorError, OSError, EOFError, RuntimeError, ValueError) as error:
        reason = one_line(error, 200)
        raise InputError(f"{path} is damaged or cut off ({reason}); {REMEDY}.") from error


def _open(folder: Path, config: Any) -> tuple[str, dict[str, tuple[Any, Any]]]:
    """The checkpoint's type, and its models with their tokenizers by part."""
    if config.model_type == "rag":
        checkpoint = load_checkpoint(str(folder))
        encoder, generator = checkpoint.question_encoder, checkpoint.generator
        parts = {
            "question encoder": (encoder.model, encoder.tokenizer),
            "generator": (generator.model, generator.tokenizer),
        }
        return checkpoint.model_type, parts
    if is_generator(config):
        model: Any = open_model(ModelRequest(str(folder), device=torch.device("cpu")))
        return config.model_type, {"generator": (model.generator.model, model.generator.tokenizer)}
    encoder = load_encoder(str(folder), "passage")
    return config.model_type, {"encoder": (encoder.model, encoder.tokenizer)}
