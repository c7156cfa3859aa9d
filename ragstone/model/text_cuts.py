"""Where a text can be cut so that the tokens of its two parts, one behind the other, are those of the text.

Most tokenizers split a text into words first, and a blank belongs to the word behind it, or to none; what is before
a blank then has its tokens whatever follows.
"""

from __future__ import annotations

from itertools import product
from typing import Any

from transformers import TokenizersBackend

PROBES = ("a", "B's", "7", ".", ")", "<", "é", "河", "ﬁ", "e\u0301", "▁", "\u0627")
"""What may stand on both sides of a blank: all that words are told apart by."""


def calls_backend_alone(tokenizer: Any) -> bool:
    """Whether a tokenizer of transformers does no more than to ask its Rust backend."""
    return getattr(type(tokenizer), "_encode_plus", None) is TokenizersBackend._encode_plus


def cuts_at_blanks(tokenizer: Any) -> bool:
    """Whether all texts can be cut where place_to_cut says.

    Not with those that make tokens of whole texts, as Llama 2's and Gemma's do, nor with added tokens that take the
    blank behind them or have one within.
    """
    if not calls_backend_alone(tokenizer) or tokenizer.backend_tokenizer.pre_tokenizer is None:
        return False
    if any(token.rstrip or " " in token.content for token in tokenizer.added_tokens_decoder.values()):
        return False
    return all(
        _words(tokenizer, f"{before} {behind}") == _words(tokenizer, before) + _words(tokenizer, f" {behind}")
        for before, behind in product(PROBES, repeat=2)
    )


def place_to_cut(text: str, last: int) -> int:
    """The last blank of `text` up to `last`, if it stands alone between two characters that are seen; else 0."""
    place = text.rfind(" ", 0, last + 1)
    return place if 0 < place < len(text) - 1 and _seen(text[place - 1]) and _seen(text[place + 1]) else 0


def _words(tokenizer: Any, text: str) -> list[str]:
    backend = tokenizer.backend_tokenizer
    normal = text if backend.normalizer is None else backend.normalizer.normalize_str(text)
    return [word for word, _ in backend.pre_tokenizer.pre_tokenize_str(normal)]


def _seen(character: str) -> bool:
    """No blank of any kind, and nothing that a normaliser may take for one or take away."""
    return character.isprintable() and character != " "
