"""Question and passage encoders that belong together."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from ragstone.encoders.load import PASSAGE_ENCODER_KEY, load_encoder
from ragstone.encoders.pair import EncoderPair, fresh_pair, load_pair
from ragstone.errors import InputError

TEXTS = ["who founded the old town", "the river by the hill", "a red bridge"] * 3


def reloaded(folder: Path) -> EncoderPair:
    return load_pair(str(folder / "question_encoder"), str(folder / "passage_encoder"))


def recorded(folder: Path, name: str) -> str:
    return json.loads((folder / name / "config.json").read_text(encoding="utf-8"))[PASSAGE_ENCODER_KEY]["fingerprint"]


@pytest.mark.parametrize("shared", [False, True])
def test_fresh_encoders_start_alike(shared: bool) -> None:
    pair = fresh_pair(TEXTS, shared=shared, hidden_size=16, vocab_size=200, normalize=True)
    assert (pair.question.model is pair.passage.model) == shared
    assert pair.question.fingerprint() == pair.passage.fingerprint()
    np.testing.assert_allclose(np.linalg.norm(pair.question.embed(TEXTS), axis=1), 1, rtol=1e-5)


@pytest.mark.parametrize("kind", ["fresh", "dpr", "sentence-transformers"])
@pytest.mark.parametrize("shared", [False, True])
def test_question_encoder_records_the_passage_encoder(
    kind: str, shared: bool, tmp_path: Path, models_folder: Path, minilm_folder: str
) -> None:
    """The fingerprint is that of the passage encoder as the next command opens it."""
    dpr = [str(models_folder / name) for name in ("question_encoder", "passage_encoder")]
    pair = {
        "fresh": lambda: fresh_pair(TEXTS, shared=shared, hidden_size=16, vocab_size=200, pooling="cls", max_length=30),
        "dpr": lambda: load_pair(*dpr, max_length=30) if not shared else load_pair(dpr[0], dpr[0], shared=True),
        "sentence-transformers": lambda: load_pair(minilm_folder, minilm_folder, shared=shared, max_length=30),
    }[kind]()
    pair.save(tmp_path)
    fingerprint = load_encoder(str(tmp_path / "passage_encoder"), "passage").fingerprint()
    assert recorded(tmp_path, "question_encoder") == fingerprint
    assert recorded(tmp_path, "passage_encoder") == fingerprint
    assert reloaded(tmp_path).question.embed(TEXTS).tolist() == pair.question.embed(TEXTS).tolist()
    assert reloaded(tmp_path).passage.embed(TEXTS, TEXTS).tolist() == pair.passage.embed(TEXTS, TEXTS).tolist()


def test_a_record_of_before_is_replaced(tmp_path: Path) -> None:
    fresh_pair(TEXTS, hidden_size=16, vocab_size=200, seed=1).save(tmp_path / "before")
    pair = reloaded(tmp_path / "before")
    pair.passage.model.embeddings.word_embeddings.weight.data += 1
    pair.save(tmp_path / "after")
    assert recorded(tmp_path / "after", "question_encoder") != recorded(tmp_path / "before", "question_encoder")
    assert recorded(tmp_path / "after", "passage_encoder") == pair.passage.fingerprint()


def test_vectors_of_different_length(tmp_path: Path, models_folder: Path) -> None:
    fresh_pair(TEXTS, hidden_size=32, vocab_size=200).save(tmp_path)
    with pytest.raises(InputError, match=r"vectors of 16 dimensions and .* of 32; take two whose vectors"):
        load_pair(str(models_folder / "question_encoder"), str(tmp_path / "passage_encoder"))


def test_normalised_dpr_encoders_are_refused(models_folder: Path) -> None:
    paths = [str(models_folder / name) for name in ("question_encoder", "passage_encoder")]
    with pytest.raises(InputError, match="is a DPR encoder, whose vectors are not normalised; leave --normalize out"):
        load_pair(*paths, normalize=True)
