"""Contexts as token ids, no longer than a generator may read."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from transformers import TokenizersBackend


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
    rows = _tokens(tokenizer, [head + tail for head, tail in contexts], special_tokens=opens)
    ids = [tokens for tokens, _ in rows]
    for row, (_, special) in enumerate(rows):
        opening, closing = _special_ends(special)
        end = len(special) - closing
        if not closes:
            ids[row], closing = ids[row][:end], 0
        surplus = len(ids[row]) - max_length
        if surplus > 0:
            ((tail, _),) = _tokens(tokenizer, [contexts[row][1]], special_tokens=False)
            question = len(tail)
            passage_end = max(end - question, opening)
            cut = max(passage_end - surplus, opening)
            if closes:
                kept = ids[row][:cut] + ids[row][passage_end:end]
                ids[row] = kept[: max_length - closing] + ids[row][end:]
            else:
                rest = ids[row][passage_end:] if cut > opening else ids[row][opening:]
                ids[row] = ids[row][: max(cut, opening)] + rest[-(max_length - max(cut, opening)) :]
    return ids


def _tokens(tokenizer: Any, texts: Sequence[str], special_tokens: bool) -> list[tuple[list[int], list[int]]]:
    """Token ids of each text, and for each token whether (1) or not (0) the tokenizer added it.

    Where transformers does no more than to ask its Rust backend, that is asked at once, and not where in the text each
    token stands, which takes nearly as long as the tokens do.
    """
    if getattr(type(tokenizer), "_encode_plus", None) is not TokenizersBackend._encode_plus:
        joined = tokenizer(list(texts), add_special_tokens=special_tokens, return_special_tokens_mask=True)
        return list(zip(joined["input_ids"], joined["special_tokens_mask"], strict=True))
    backend = tokenizer.backend_tokenizer
    # As transformers sets it before each call: an earlier call may have asked for another way.
    backend.no_truncation()
    backend.no_padding()
    backend.encode_special_tokens = tokenizer.split_special_tokens
    encodings = backend.encode_batch_fast(list(texts), add_special_tokens=special_tokens)
    return [(encoding.ids, encoding.special_tokens_mask) for encoding in encodings]


def _special_ends(special: Sequence[int]) -> tuple[int, int]:
    """How many tokens at the start and at the end of a context the tokenizer added."""
    text = [i for i, flag in enumerate(special) if not flag]
    return (text[0], len(special) - text[-1] - 1) if text else (len(special), 0)
