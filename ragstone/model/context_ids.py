"""Contexts as token ids, no longer than a generator may read."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any


def context_ids(
    tokenizer: Any, contexts: Sequence[tuple[str, str]], max_length: int, *, opens: bool = True, closes: bool = True
) -> list[list[int]]:
    """Token ids of joined contexts; where one is too long, tokens are taken from the end of its passage.

    Only when the passage is used up is the end of the question cut; of a text that can be gone on with its beginning,
    since what stands last says what is to come.

    Args:
        tokenizer: of transformers.
        contexts: (passage part, question part) of each.
        max_length: tokens at most.
        opens: with the tokens that the tokenizer puts before a text; a chat template brings its own.
        closes: with those that it puts behind it; without them, the text can be gone on with.
    """
    texts = [head + tail for head, tail in contexts]
    joined = tokenizer(texts, add_special_tokens=opens, return_special_tokens_mask=True)
    ids: list[list[int]] = joined["input_ids"]
    for row, special in enumerate(joined["special_tokens_mask"]):
        opening, closing = _special_ends(special)
        end = len(special) - closing
        if not closes:
            ids[row], closing = ids[row][:end], 0
        surplus = len(ids[row]) - max_length
        if surplus > 0:
            question = len(tokenizer(contexts[row][1], add_special_tokens=False)["input_ids"])
            passage_end = max(end - question, opening)
            cut = max(passage_end - surplus, opening)
            if closes:
                kept = ids[row][:cut] + ids[row][passage_end:end]
                ids[row] = kept[: max_length - closing] + ids[row][end:]
            else:
                rest = ids[row][passage_end:] if cut > opening else ids[row][opening:]
                ids[row] = ids[row][: max(cut, opening)] + rest[-(max_length - max(cut, opening)) :]
    return ids


def _special_ends(special: Sequence[int]) -> tuple[int, int]:
    """How many tokens at the start and at the end of a context the tokenizer added."""
    text = [i for i, flag in enumerate(special) if not flag]
    return (text[0], len(special) - text[-1] - 1) if text else (len(special), 0)
