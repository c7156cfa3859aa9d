"""The layer over the vocabulary, at some positions only, and nothing behind it that changes nothing.

Shapes: R rows, T tokens, D dimensions, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch.nn.functional import pad

from ragstone.encoders.precision import padded_length
from ragstone.errors import InputError

BIAS = "final_logits_bias"


def vocabulary_layer(model: Any) -> Any:
    """The layer of a transformers model that gives scores over the vocabulary.

    Raises:
        InputError: the model says of none that it is that (FSMT names embeddings).
    """
    layer = model.get_output_embeddings()
    if layer is None or isinstance(layer, torch.nn.Embedding):
        raise InputError(
            f"The {model.config.model_type} generator has no layer of its own over the vocabulary; take another one, "
            "such as BART or T5."
        )
    return layer


@contextmanager
def only_at(positions: torch.Tensor, head: Any) -> Iterator[None]:
    """Let `head`, which maps states [R, T, D] to the vocabulary, do so at some positions only.

    The vocabulary is the widest layer by far, and what it gives at padding is of no use.

    Args:
        positions: [R, T], true at M positions.
        head: a module; it gives [1, M, V] in the end.
    """
    selected = 0
    """M"""

    def select(_: Any, arguments: tuple[torch.Tensor]) -> tuple[torch.Tensor]:
        nonlocal selected
        states = arguments[0][positions]
        selected = len(states)
        missing = padded_length(selected, states.device, states.dtype) - selected
        return ((pad(states, (0, 0, 0, missing)) if missing else states).unsqueeze(0),)

    def cut(_: Any, __: Any, output: torch.Tensor) -> torch.Tensor | None:
        return output[:, :selected] if output.shape[1] > selected else None

    handles = [head.register_forward_pre_hook(select), head.register_forward_hook(cut)]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


@contextmanager
def without_zero_bias(model: Any) -> Iterator[None]:
    """Let a model of transformers add nothing to its scores where its bias over the vocabulary is all zeros.

    BART and its like have one, in float32 whatever they compute in, and the sum with it is another tensor of the size
    of the scores, or twice their size. On a GPU, which would have to be waited for, it is not looked at.
    """
    # An attribute that is set on LoRA's wrapper hides the model's own, which goes on to be used.
    model = model.get_base_model() if hasattr(model, "get_base_model") else model
    bias = getattr(model, BIAS, None)
    if not isinstance(bias, torch.Tensor) or bias.device.type != "cpu" or bias.any():
        yield
        return
    setattr(model, BIAS, bias.new_zeros(()).as_subclass(_Nothing))
    try:
        yield
    finally:
        setattr(model, BIAS, bias)


class _Nothing(torch.Tensor):
    """A zero. What it is added to stays that very tensor."""

    @classmethod
    def __torch_function__(cls, function: Any, types: Any, arguments: Any = (), options: Any = None) -> Any:
        if function is torch.Tensor.add:
            return arguments[0]
        return super().__torch_function__(function, types, arguments, options or {})
