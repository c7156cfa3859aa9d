"""LoRA: a generator that stays as it is, with small matrices beside its layers that are trained instead (peft).

Hu et al. 2021, arXiv 2106.09685.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ragstone.errors import InputError, one_line

ALL_LINEAR = "all-linear"
READ_PAST = {"dt_proj", "out_proj"}
"""Names of linear layers in a layer of states whose weights it reads without calling them."""


@dataclass(frozen=True)
class LoraSettings:
    """Names as in peft."""

    r: int
    """Rank of the matrices."""
    alpha: int
    """What they are scaled by, divided by r."""
    target_modules: tuple[str, ...] = ()
    """Names of the layers that get them; all linear ones that can, but the one over the vocabulary, where empty."""
    dropout: float = 0.0


def add_adapters(model: Any, settings: LoraSettings) -> Any:
    """The model with new adapters, which change nothing yet; they alone are trainable.

    Raises:
        InputError: peft is not installed, no layer has such a name, or one that has cannot have adapters.
    """
    with _peft() as peft:
        return _add(peft, model, settings)


def _add(peft: Any, model: Any, settings: LoraSettings) -> Any:
    names = {name.rpartition(".")[2] for name, layer in model.named_modules() if hasattr(layer, "weight")}
    asked = " ".join(settings.target_modules)
    past = _read_past(model)
    if past and READ_PAST & {*settings.target_modules}:
        raise InputError(
            f"--lora_target_modules {asked}: the {model.config.model_type} generator uses the weights of "
            f"{' and '.join(sorted(READ_PAST))} without their adapters; leave them out."
        )
    config = peft.LoraConfig(
        r=settings.r,
        lora_alpha=settings.alpha,
        target_modules=list(settings.target_modules) or ALL_LINEAR,
        exclude_modules=past or None,
        lora_dropout=settings.dropout,
        task_type="SEQ_2_SEQ_LM" if model.config.is_encoder_decoder else "CAUSAL_LM",
    )
    try:
        return peft.get_peft_model(model, config)
    except ValueError as error:
        if names & {*settings.target_modules}:
            reason = one_line(error)
            raise InputError(
                f"--lora_target_modules {asked} cannot have adapters ({reason}); name other layers, or leave it out."
            ) from error
        raise InputError(
            f"--lora_target_modules {asked} names no layer of the generator; its layers are {', '.join(sorted(names))}."
        ) from error


def _read_past(model: Any) -> list[str]:
    """Layers whose weights a layer of states reads itself (Mamba), past adapters that stand beside them."""
    holders = (name for name, module in model.named_modules() if hasattr(module, "A_log") and hasattr(module, "D"))
    return [f"{name}.{layer}" for name in holders for layer in sorted(READ_PAST)]


def load_adapters(model: Any, folder: Path) -> Any:
    """The model with the adapters that peft saved in `folder`, trainable.

    Raises:
        InputError: peft is not installed, or the adapters do not fit the model.
    """
    import torch

    try:
        with _peft() as peft:
            # Left alone, peft reads them to the first GPU, whichever is this process's.
            return peft.PeftModel.from_pretrained(model, folder, is_trainable=True, torch_device=str(model.device))
    except torch.OutOfMemoryError:
        raise
    except (ValueError, RuntimeError, OSError) as error:
        reason = one_line(error)
        raise InputError(f"The adapters in {folder} cannot be used ({reason}); train them again.") from error


def merge_adapters(model: Any) -> Any:
    """The model with its adapters added to its weights: the same answers from a whole generator."""
    return model.merge_and_unload()


def adapter_differences(model: Any, settings: LoraSettings) -> dict[str, tuple[Any, Any]]:
    """What `settings` say otherwise than the model's adapters are: the setting's name to what it says and what is."""
    there = model.peft_config[model.active_adapter]
    pairs: dict[str, tuple[Any, Any]] = {
        "r": (settings.r, there.r),
        "alpha": (settings.alpha, there.lora_alpha),
        "dropout": (settings.dropout, there.lora_dropout),
    }
    if settings.target_modules:
        pairs["target_modules"] = (" ".join(sorted(settings.target_modules)), " ".join(sorted(there.target_modules)))
    return {name: (asked, known) for name, (asked, known) in pairs.items() if asked != known}


@contextmanager
def _peft() -> Iterator[Any]:
    """The library, without three warnings: it asks transformers for what that deprecates, says that it has found out
    that a layer of GPT-2 keeps its weights transposed, and looks for adapters of experts where there are none."""
    try:
        import peft
    except ImportError as error:
        raise InputError("LoRA needs peft, which is not installed; pip install 'ragstone[lora]'.") from error
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        warnings.filterwarnings("ignore", "fan_in_fan_out is set to")
        warnings.filterwarnings("ignore", r"The following \w+_pattern keys did not match")
        yield peft
