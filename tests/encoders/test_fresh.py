"""Fresh encoders and their tokenizers."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoTokenizer

from ragstone.encoders.fresh import fresh_encoder, train_tokenizer

TEXTS = ["The old town by the river", "a river and a hill", "the hill of the old king"] * 5


def test_tokenizer_learns_words_and_spells_the_rest() -> None:
    tokenizer = train_tokenizer(TEXTS, 200)
    assert len(tokenizer) <= 200
    assert tokenizer.tokenize("River HILL") == ["river", "hill"]
    assert tokenizer.unk_token not in tokenizer.tokenize("zyxwvutsrqponmlkjihgfedcba 0123456789")
    ids = tokenizer("river", "hill")["input_ids"]
    assert tokenizer.convert_ids_to_tokens(ids) == ["[CLS]", "river", "[SEP]", "hill", "[SEP]"]


def test_tokenizer_survives_saving(tmp_path: Path) -> None:
    tokenizer = train_tokenizer(TEXTS, 200)
    tokenizer.save_pretrained(tmp_path)
    loaded = AutoTokenizer.from_pretrained(tmp_path)
    text = "The Kings of Río, hills and 12 unheard-of towns"
    assert loaded(text)["input_ids"] == tokenizer(text)["input_ids"]


def test_same_seed_same_weights_whatever_torch_did_before() -> None:
    tokenizer = train_tokenizer(TEXTS, 200)
    torch.manual_seed(7)
    first = fresh_encoder(tokenizer, hidden_size=16, seed=3).fingerprint()
    drawn = torch.rand(1)
    torch.manual_seed(7)
    assert torch.equal(torch.rand(1), drawn), "making an encoder must not use up the caller's random numbers"
    assert fresh_encoder(tokenizer, hidden_size=16, seed=3).fingerprint() == first
    assert fresh_encoder(tokenizer, hidden_size=16, seed=4).fingerprint() != first


@pytest.mark.parametrize("layers", [1, 2])
def test_texts_that_share_words_score_high_untrained(layers: int) -> None:
    encoder = fresh_encoder(train_tokenizer(TEXTS, 200), hidden_size=64, layers=layers, seed=0)
    question, passages = encoder.embed(["where is the river?"]), encoder.embed(["the old river", "a hill of kings"])
    scores = (question @ passages.T)[0]
    assert scores[0] > scores[1]
    assert encoder.dimension == 64
    assert np.isfinite(scores).all()
