"""Contexts as token ids, no longer than a generator may read. What has been read before is not tokenised again."""

from __future__ import annotations

from array import array
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from hashlib import blake2b
from typing import Any

from ragstone.model.text_cuts import TextCuts, calls_backend_alone

KEPT_TOKENS = 3 * 2**23
"""Of passages, to be read again, with what finds them: 96 MiB at most; some 130,000 passages of 130 tokens."""
TOKENS_TO_FIND_ONE = 60
"""Key, entry and array of a passage take no more memory than so many tokens: 164 to 181 bytes (tracemalloc)."""


@dataclass(frozen=True)
class _Tokens:
    """Tokens of a text, and how many of them at its start and end the tokenizer has added."""

    ids: list[int]
    opening: int
    closing: int


class ContextTokenizer:
    """Gives contexts their token ids, and remembers those of passages.

    A passage comes with another question each time: what stands before the last blank that a text can be cut at (see
    text_cuts) is remembered, and the rest is tokenised. The tokenizer must stay as it is; which tokens it puts before
    and behind a text may change.
    """

    def __init__(self, tokenizer: Any, kept_tokens: int = KEPT_TOKENS) -> None:
        """A `tokenizer` of transformers; passages are remembered until they fill the memory of `kept_tokens` tokens."""
        self._tokenizer = tokenizer
        self._room = kept_tokens
        self._known: dict[bytes, array[int]] = {}

    def added_tokens(self) -> tuple[int, int]:
        """How many tokens the tokenizer puts before and behind a text."""
        (tokens,) = self._whole(["a"], special_tokens=True)
        return tokens.opening, tokens.closing

    def ids(
        self, contexts: Sequence[tuple[str, str]], max_length: int, *, opens: bool = True, closes: bool = True
    ) -> list[list[int]]:
        """Token ids of joined contexts; where one is too long, tokens are taken from the end of its passage.

        Only when the passage is used up is the end of the question cut; of a text that can be gone on with its
        beginning, since what stands last says what is to come.

        Args:
            contexts: (passage part, question part) of each.
            max_length: tokens at most.
            opens: with the tokens that the tokenizer puts before a text; a chat template brings its own.
            closes: with those that it puts behind it; without them, the text can be gone on with.
        """
        rows = self._tokens(contexts, opens)
        return [
            self._shortened(tokens, question, max_length, closes)
            for tokens, (_, question) in zip(rows, contexts, strict=True)
        ]

    def _shortened(self, tokens: _Tokens, question: str, max_length: int, closes: bool) -> list[int]:
        ids, opening, closing = tokens.ids, tokens.opening, tokens.closing
        end = len(ids) - closing
        if not closes:
            ids, closing = ids[:end], 0
        surplus = len(ids) - max_length
        if surplus <= 0:
            return ids
        (alone,) = self._whole([question], special_tokens=False)
        passage_end = max(end - len(alone.ids), opening)
        cut = max(passage_end - surplus, opening)
        if closes:
            kept = ids[:cut] + ids[passage_end:end]
            return kept[: max_length - closing] + ids[end:]
        rest = ids[passage_end:] if cut > opening else ids[opening:]
        return ids[:cut] + rest[-(max_length - cut) :]

    def _tokens(self, contexts: Sequence[tuple[str, str]], opens: bool) -> list[_Tokens]:
        """Tokens of contexts: those of their beginnings, most of which are known, and of what follows."""
        texts = [head + tail for head, tail in contexts]
        cuts = self._cuts
        if not cuts.possible or not texts:
            return self._whole(texts, opens)
        # The question's part may begin with the blank that is cut at.
        places = [cuts.place(text, len(head)) for text, (head, _) in zip(texts, contexts, strict=True)]
        beginnings = self._remembered([text[:place] for text, place in zip(texts, places, strict=True)])
        rests = [text[place:] for text, place in zip(texts, places, strict=True)]
        each = list(dict.fromkeys(rests))
        known = dict(zip(each, self._whole(each, opens), strict=True))
        return [
            self._joined(beginning, known[rest]) or self._whole([text], opens)[0]
            for beginning, rest, text in zip(beginnings, rests, texts, strict=True)
        ]

    @staticmethod
    def _joined(beginning: list[int], rest: _Tokens) -> _Tokens | None:
        """The tokens of a text in two parts; None where those of `rest` do not tell opening and closing apart."""
        if not beginning:
            return rest
        if rest.opening == len(rest.ids):
            return None
        ids = rest.ids[: rest.opening] + beginning + rest.ids[rest.opening :]
        return _Tokens(ids, rest.opening, rest.closing)

    @cached_property
    def _cuts(self) -> TextCuts:
        return TextCuts(self._tokenizer)

    def _remembered(self, texts: Sequence[str]) -> list[list[int]]:
        """Token ids of beginnings of texts, tokenised where they are not known."""
        keys = [blake2b(text.encode(), digest_size=16).digest() for text in texts]
        missing = {key: text for key, text in zip(keys, texts, strict=True) if key not in self._known}
        rows = self._whole(list(missing.values()), special_tokens=False)
        found = {key: array("i", tokens.ids) for key, tokens in zip(missing, rows, strict=True)}
        for key, ids in found.items():
            # None makes room for another: within an epoch, any is as likely to come next.
            taken = len(ids) + TOKENS_TO_FIND_ONE
            if taken <= self._room:
                self._known[key] = ids
                self._room -= taken
        return [(found[key] if key in found else self._known[key]).tolist() for key in keys]

    def _whole(self, texts: Sequence[str], special_tokens: bool) -> list[_Tokens]:
        """Tokens of texts, with or without those that the tokenizer adds.

        Where transformers does no more than to ask its Rust backend, that is asked at once, and not where in the text
        each token stands, which takes nearly as long as the tokens do.
        """
        tokenizer = self._tokenizer
        if not calls_backend_alone(tokenizer):
            joined = tokenizer(list(texts), add_special_tokens=special_tokens, return_special_tokens_mask=True)
            return [
                _Tokens(ids, *_special_ends(mask))
                for ids, mask in zip(joined["input_ids"], joined["special_tokens_mask"], strict=True)
            ]
        backend = tokenizer.backend_tokenizer
        # As transformers sets it before each call: an earlier call may have asked for another way.
        backend.no_truncation()
        backend.no_padding()
        backend.encode_special_tokens = tokenizer.split_special_tokens
        encodings = backend.encode_batch_fast(list(texts), add_special_tokens=special_tokens)
        return [_Tokens(encoding.ids, *_special_ends(encoding.special_tokens_mask)) for encoding in encodings]


def _special_ends(special: Sequence[int]) -> tuple[int, int]:
    """How many tokens at the start and at the end of a context the tokenizer added."""
    text = [i for i, flag in enumerate(special) if not flag]
    return (text[0], len(special) - text[-1] - 1) if text else (len(special), 0)
