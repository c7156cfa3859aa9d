"""A table of token embeddings that is read in several places, with one gradient.

Shapes: M different tokens, V vocabulary, D dimensions.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn
from torch.autograd.function import once_differentiable
from torch.func import functional_call


class SharedTable:
    """Token embeddings that encoder, decoder and vocabulary layer share.

    On the way back, every look at a table makes a gradient of the whole table, most of it zeros, and all of them are
    added up, which costs as much as encoding some texts. Here each reader is handed the table by the reader before it,
    and adds its own part to the gradient that comes back from those behind it.
    """

    def __init__(self, embedding: Any) -> None:
        """The table of `embedding`, a module that gives a vector for each token, whatever stands around it."""
        self._weight: Any = getattr(embedding, "weight", None)
        self._handed_on: Any = self._weight
        self._converted: tuple[Any, Any] = (None, None)

    @contextmanager
    def looked_up_once(self, tokens: torch.Tensor, embedding: Any) -> Iterator[None]:
        """Let `embedding` look each of `tokens` up once, for all passes within the with-block.

        Nothing changes where there are no gradients, nor for a pass that asks for others than `tokens`.

        Args:
            tokens: all that the passes ask for, and others; of any shape.
            embedding: a module whose weights are this table, or another one.
        """
        if not torch.is_grad_enabled():
            yield
            return
        known = tokens.unique()
        vectors = self._look_up(known, embedding)

        def take(_: Any, arguments: tuple[torch.Tensor], __: torch.Tensor) -> torch.Tensor | None:
            places = torch.searchsorted(known, arguments[0]).clamp(max=len(known) - 1)
            return nn.functional.embedding(places, vectors) if torch.equal(known[places], arguments[0]) else None

        handle = embedding.register_forward_hook(take)
        try:
            yield
        finally:
            handle.remove()

    def call(self, model: Any, layer: Any, **inputs: Any) -> Any:
        """Call `model` on `inputs`, in which its vocabulary layer is the table's next reader, if it reads this table.

        Args:
            model: a module.
            layer: its vocabulary layer, whose weight is another tensor meanwhile, for this thread and all others.
            inputs: by their names.
        """
        if self._handed_on is self._weight or getattr(layer, "weight", None) is not self._weight:
            return model(**inputs)
        name = next(name for name, module in model.named_modules() if module is layer)
        return functional_call(model, {f"{name}.weight": self._for_layers()}, (), inputs, tie_weights=False)

    def _for_layers(self) -> torch.Tensor:
        """The table as layers compute with it: under autocast converted once, which autocast does for weights alone."""
        table: torch.Tensor = self._handed_on
        kind = table.device.type
        if table.dtype != torch.float32 or not torch.is_autocast_enabled(kind):
            return table
        if self._converted[0] is not table:
            self._converted = table, table.to(torch.get_autocast_dtype(kind))
        converted: torch.Tensor = self._converted[1]
        return converted

    def _look_up(self, known: torch.Tensor, embedding: Any) -> torch.Tensor:
        """Vectors [M, D] of the tokens `known` [M]."""
        vectors: torch.Tensor = embedding(known)
        if not (_is_plain(embedding) and embedding.weight is self._weight and self._weight.requires_grad):
            return vectors
        padding = embedding.padding_idx
        rows, table = _Rows.apply(self._handed_on, known, padding)
        # The rows are not where padding has its number.
        embedding.padding_idx = None
        try:
            shared = functional_call(embedding, {"weight": rows}, torch.arange(len(known), device=known.device))
        finally:
            embedding.padding_idx = padding
        if not torch.equal(shared, vectors):
            # Some token has a vector that does not come from the table.
            return vectors
        self._handed_on = table
        return shared


def _is_plain(embedding: Any) -> bool:
    """Whether a module gives rows of its table, be they scaled."""
    return isinstance(embedding, nn.Embedding) and not (
        embedding.max_norm or embedding.scale_grad_by_freq or embedding.sparse
    )


class _Rows(torch.autograd.Function):
    """Rows of a table, and the table once more, for its next reader."""

    @staticmethod
    def forward(
        context: Any, table: torch.Tensor, rows: torch.Tensor, padding: int | None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """The rows [M, D] and the table [V, D]; the row `padding` gets no gradient from here."""
        context.set_materialize_grads(False)
        context.save_for_backward(rows)
        context.padding, context.shape = padding, table.shape
        return table[rows], table.view_as(table)

    @staticmethod
    @once_differentiable
    def backward(
        context: Any, of_rows: torch.Tensor | None, of_table: torch.Tensor | None
    ) -> tuple[torch.Tensor | None, None, None]:
        """The gradient that comes from the readers behind this one, with that of the rows added in its place."""
        if of_rows is None:
            return of_table, None, None
        (rows,) = context.saved_tensors
        if context.padding is not None:
            of_rows = of_rows.masked_fill((rows == context.padding).unsqueeze(1), 0)
        if of_table is None:
            of_table = of_rows.new_zeros(context.shape)
        return of_table.index_add_(0, rows, of_rows), None, None
