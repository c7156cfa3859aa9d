"""Where a text can be cut so that the tokens of its two parts, one behind the other, are those of the text.

Most tokenizers split a text into words first, and a blank belongs to the word behind it, or to none; what is before
a blank then has its tokens whatever follows.
"""

from __future__ import annotations

import unicodedata
from itertools import product
from typing import Any

from transformers import TokenizersBackend

PROBES = ("a", "B's", "7", ".", ")", "<", "é", "河", "ﬁ", "e\u0301", "a \u0301", "¨", "☀", "\u0627")
"""What may stand on both sides of a blank, one of each kind that words are told apart by."""
BLANKS_TO_SOME = "\u2581\ufffd"
"""Characters that stand for a blank in some tokenizers."""


def calls_backend_alone(tokenizer: Any) -> bool:
    """Whether a tokenizer of transformers does no more than to ask its Rust backend."""
    return getattr(type(tokenizer), "_encode_plus", None) is TokenizersBackend._encode_plus


class TextCuts:
    """Where the texts of one tokenizer can be cut."""

    def __init__(self, tokenizer: Any) -> None:
        self.possible = calls_backend_alone(tokenizer) and _splits_at_blanks(tokenizer.backend_tokenizer)
        """Not with tokenizers that make tokens of whole texts, as Llama 2's and Gemma's do, nor with added tokens that
        have a blank within."""
        self._greedy: tuple[str, ...] = ()
        if self.possible:
            added = list(tokenizer.added_tokens_decoder.values())
            greedy = [token for token in added if token.rstrip]
            within = [token for token in added if " " in token.content.lstrip(" ")]
            self._greedy = tuple(token.content for token in greedy)
            # What is looked for in the normalised text may look otherwise in the text.
            self.possible = not within and not any(token.normalized for token in greedy)

    def place(self, text: str, last: int) -> int:
        """The last blank of `text` up to `last`, if it stands alone and the text can be cut before it; else 0."""
        place = text.rfind(" ", 0, last + 1)
        alone = 0 < place < len(text) - 1 and _seen(text[place - 1]) and _seen(text[place + 1])
        # Some added tokens take the blank behind them.
        return place if alone and not text.endswith(self._greedy, 0, place) else 0


def _splits_at_blanks(backend: Any) -> bool:
    if backend.pre_tokenizer is None:
        return False

    def words(text: str) -> list[str]:
        normal = text if backend.normalizer is None else backend.normalizer.normalize_str(text)
        return [word for word, _ in backend.pre_tokenizer.pre_tokenize_str(normal)]

    return all(
        words(f"{before} {behind}") == words(before) + words(f" {behind}")
        for before, behind in product(PROBES, repeat=2)
    )


def _seen(character: str) -> bool:
    """No blank of any kind, and nothing that a normaliser may take for one, take away or join with another."""
    return (
        character.isprintable()
        and character != " "
        and character not in BLANKS_TO_SOME
        and not unicodedata.category(character).startswith("M")
    )
