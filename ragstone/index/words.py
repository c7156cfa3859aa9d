"""Text to words, for search by words: the same for passages and questions, whatever the language."""

from __future__ import annotations

import unicodedata

import regex

_UNSPACED = r"\p{Han}\p{Hiragana}\p{Katakana}\p{Thai}\p{Lao}\p{Khmer}\p{Myanmar}"
# Scripts that are written without spaces between words give a word for each letter, with the marks on it.
_WORDS = regex.compile(rf"[{_UNSPACED}]\p{{M}}*|[[\p{{L}}\p{{N}}\p{{M}}]--[{_UNSPACED}]]+", flags=regex.V1)


def split_words(text: str) -> list[str]:
    """The words of `text` in order: runs of letters, digits and marks, in one case (NFKC, then casefold).

    Nothing is stemmed and no word is left out as too common: BM25 gives a word that most passages have next to no
    weight by itself.
    """
    return _WORDS.findall(unicodedata.normalize("NFKC", text).casefold())
