"""Passages to vectors, group by group. The build does it in its own process, or in many."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

from ragstone.allocation import keeping_freed_memory
from ragstone.encoders.text_encoder import TextEncoder, TokenLists, check_finite
from ragstone.progress import ProgressBar
from ragstone.types import FloatArray, Passage


def embed_groups(
    groups: Iterator[list[Passage]],
    encoder: TextEncoder,
    *,
    batch_size: int,
    progress: ProgressBar | None = None,
) -> Iterator[tuple[list[Passage], FloatArray]]:
    """Each group of n passages with its vectors [n, D].

    Passages of like length within a group go through the encoder together, so a large group costs less padding.

    Raises:
        InputError: the encoder gives vectors that are not finite.
    """
    with keeping_freed_memory():
        for group, tokens in _tokenised_ahead(groups, encoder):
            vectors = encoder.embed_tokens(tokens, batch_size=batch_size, progress=progress)
            check_finite(vectors, encoder)
            yield group, vectors


def _tokenised_ahead(
    groups: Iterator[list[Passage]], encoder: TextEncoder
) -> Iterator[tuple[list[Passage], TokenLists]]:
    """Each group with its tokens, read and tokenised by another thread while the one before it is embedded."""

    def prepare() -> tuple[list[Passage], TokenLists] | None:
        group = next(groups, None)
        if group is None:
            return None
        return group, encoder.token_lists([passage.text for passage in group], [passage.title for passage in group])

    with ThreadPoolExecutor(max_workers=1) as thread:
        pending = thread.submit(prepare)
        while (prepared := pending.result()) is not None:
            pending = thread.submit(prepare)
            yield prepared
