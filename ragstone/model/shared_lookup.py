"""Token embeddings for several passes of a model, looked up once. Shapes: M different tokens, D dimensions."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch


@contextmanager
def looked_up_once(tokens: torch.Tensor, embedding: Any) -> Iterator[None]:
    """Let `embedding` look each of `tokens` up once, for all passes within the with-block.

    On the way back, every look at a table of embeddings makes a gradient of the whole table, most of it zeros, which
    costs as much as encoding a few texts.

    Args:
        tokens: all that the passes ask for, and others; of any shape.
        embedding: a module that gives a vector for each token, whatever stands around it.
    """
    known = tokens.unique()
    vectors = embedding(known)
    """[M, D]"""

    def take(_: Any, arguments: tuple[torch.Tensor], __: torch.Tensor) -> torch.Tensor:
        return torch.nn.functional.embedding(torch.searchsorted(known, arguments[0]), vectors)

    handle = embedding.register_forward_hook(take)
    try:
        yield
    finally:
        handle.remove()
