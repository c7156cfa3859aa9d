"""Encoders that the tests of this package share."""

from __future__ import annotations

import pytest

from ragstone.encoders.fresh import fresh_encoder, train_tokenizer
from ragstone.encoders.text_encoder import TextEncoder

TEXTS = [
    "who founded the town of river hill ?",
    "Otto",
    "the hill by the old river was red, and the bridge of stone that anna built over it was blue and green",
    "mara was the king",
    "the Unheard-of Zwölf 1749",
    "what is by the river ?",
]


@pytest.fixture
def encoder() -> TextEncoder:
    """A fresh encoder of 16 dimensions that knows the letters and the words of TEXTS."""
    return fresh_encoder(train_tokenizer(TEXTS, 200), hidden_size=16, heads=2, max_length=32, seed=1)
