from __future__ import annotations

import pytest

from ragstone.index.words import split_words


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("Who founded River-Hill, in 1907?", ["who", "founded", "river", "hill", "in", "1907"]),
        ("Straße Ötztal", ["strasse", "ötztal"]),
        ("O\u0308tztal ﬁne Ⅻ", ["ötztal", "fine", "xii"]),
        ("東京 tower2は", ["東", "京", "tower2", "は"]),
        ("हिन्दी भाषा", ["हिन्दी", "भाषा"]),
        ("snake_case don't", ["snake", "case", "don", "t"]),
        (" ?!  -- ", []),
        ("", []),
    ],
)
def test_words(text: str, words: list[str]) -> None:
    assert split_words(text) == words
