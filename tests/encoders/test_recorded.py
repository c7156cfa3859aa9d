"""Folders as sentence-transformers itself saves them, held against sentence-transformers, for both sides."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer.modules import Normalize, Pooling, Transformer

from ragstone.encoders.load import load_encoder
from ragstone.encoders.recorded import Side, is_sentence_transformers
from ragstone.errors import InputError
from tests.conftest import decoder_folder

TEXTS = ["who founded the town ?", "the old river by the hill", "red", "a bridge of stone " * 30]
E5 = {"query": "query: ", "passage": "passage: "}
BGE = {"query": "what is a red hill : "}


def saved(folder: Path, transformer: Path | str, pooling: str, normalize: bool, prompts: dict[str, str]) -> Path:
    """A folder that sentence-transformers makes of a transformer."""
    body = Transformer(str(transformer), max_seq_length=36)
    modules = [body, Pooling(body.get_embedding_dimension(), pooling_mode=pooling)]
    model = SentenceTransformer(
        modules=[*modules, *([Normalize()] if normalize else [])], prompts=prompts, device="cpu"
    )
    model.save(str(folder))
    return folder


def assert_theirs(folder: Path | str, prompts: dict[str, str]) -> None:
    theirs = SentenceTransformer(str(folder), device="cpu")
    sides: tuple[tuple[Side, str], ...] = (("question", "query"), ("passage", "passage"))
    for side, name in sides:
        ours = load_encoder(str(folder), side)
        assert ours.settings.prompt == prompts.get(name, "")
        expected = theirs.encode(TEXTS, prompt=prompts.get(name, ""), batch_size=3)
        np.testing.assert_allclose(ours.embed(TEXTS, batch_size=3), expected, atol=1e-5)


@pytest.mark.parametrize(
    ("pooling", "normalize", "prompts"),
    [("mean", True, E5), ("cls", True, BGE), ("mean", False, {}), ("lasttoken", False, E5)],
    ids=["E5", "BGE", "plain", "last token"],
)
def test_it_is_read_as_it_is(
    plain_bert_folder: Path, tmp_path: Path, pooling: str, normalize: bool, prompts: dict[str, str]
) -> None:
    assert_theirs(saved(tmp_path / "model", plain_bert_folder, pooling, normalize, prompts), prompts)


@pytest.mark.parametrize(
    ("prompts", "default", "expected"),
    [
        ({"ask": "ask: ", "query": "query: "}, "ask", {"question": "query: ", "passage": "ask: "}),
        ({"ask": "ask: ", "document": ""}, "ask", {"question": "ask: ", "passage": ""}),
        ({"ask": "ask: "}, None, {"question": "", "passage": ""}),
    ],
)
def test_the_default_prompt_is_for_sides_that_have_none(
    plain_bert_folder: Path, tmp_path: Path, prompts: dict[str, str], default: str | None, expected: dict[Side, str]
) -> None:
    """An older folder names only the prompts that it was given; newer ones have an empty one for either side."""
    folder = saved(tmp_path / "model", plain_bert_folder, "mean", True, {})
    path = folder / "config_sentence_transformers.json"
    config = json.loads(path.read_text(encoding="utf-8"))
    path.write_text(json.dumps({**config, "prompts": prompts, "default_prompt_name": default}), encoding="utf-8")
    theirs = SentenceTransformer(str(folder), device="cpu")
    sides: dict[Side, str] = {"question": "query", "passage": "document"}
    for side, name in sides.items():
        ours = load_encoder(str(folder), side)
        assert ours.settings.prompt == expected[side]
        vectors = theirs.encode(TEXTS, prompt_name=name if name in prompts else None)
        np.testing.assert_allclose(ours.embed(TEXTS), vectors, atol=1e-5)
    path.write_text(json.dumps({**config, "prompts": {}, "default_prompt_name": "gone"}), encoding="utf-8")
    with pytest.raises(InputError, match="names the default prompt 'gone', but has none of that name; correct"):
        load_encoder(str(folder), "question")


@pytest.mark.parametrize("prompts", [{}, E5], ids=["no prompts", "prompts"])
def test_the_real_minilm(minilm_folder: str, tmp_path: Path, prompts: dict[str, str]) -> None:
    SentenceTransformer(minilm_folder, device="cpu", prompts=prompts).save(str(tmp_path))
    assert_theirs(tmp_path, prompts)


@pytest.mark.parametrize("family", ["qwen3", "llama"])
def test_a_decoder_only_embedding_model(tmp_path: Path, family: str) -> None:
    """Its tokenizer puts an end token behind the text and pads on the left, as sentence-transformers lets it."""
    base = decoder_folder(tmp_path / "base", family)
    folder = saved(tmp_path / "model", base, "lasttoken", True, BGE)
    assert SentenceTransformer(str(folder), device="cpu").tokenizer.padding_side == "left"
    assert load_encoder(str(folder), "question").tokenizer.padding_side == "right"
    assert_theirs(folder, BGE)


def test_prompts_by_their_names(plain_bert_folder: Path, tmp_path: Path) -> None:
    """encode_document takes the first of document, passage and corpus that there is, and so does this."""
    prompts = {"corpus": "is ", "document": "was ", "passage": "by "}
    folder = saved(tmp_path / "model", plain_bert_folder, "mean", False, prompts)
    theirs = SentenceTransformer(str(folder), device="cpu")
    ours = load_encoder(str(folder), "passage")
    np.testing.assert_allclose(ours.embed(TEXTS), theirs.encode_document(TEXTS), atol=1e-5)
    folder = saved(tmp_path / "other", plain_bert_folder, "mean", False, {"corpus": "is ", "document": ""})
    assert load_encoder(str(folder), "passage").settings.prompt == "is "


def test_a_length_that_is_not_recorded_is_that_of_the_model(plain_bert_folder: Path, tmp_path: Path) -> None:
    folder = saved(tmp_path / "model", plain_bert_folder, "mean", True, {})
    path = folder / "sentence_bert_config.json"
    values = json.loads(path.read_text(encoding="utf-8"))
    values.pop("max_seq_length", None)
    path.write_text(json.dumps(values), encoding="utf-8")
    tokenizer = json.loads((folder / "tokenizer_config.json").read_text(encoding="utf-8"))
    tokenizer.pop("model_max_length", None)
    (folder / "tokenizer_config.json").write_text(json.dumps(tokenizer), encoding="utf-8")
    assert load_encoder(str(folder), "passage").settings.max_length == 40
    assert_theirs(folder, {})


def test_what_cannot_be_applied_is_refused(plain_bert_folder: Path, question_tokenizer: object, tmp_path: Path) -> None:
    folder = saved(tmp_path / "model", plain_bert_folder, "mean", False, E5)
    pooling = next(folder.glob("1_Pooling*")) / "config.json"
    values = json.loads(pooling.read_text(encoding="utf-8"))
    pooling.write_text(json.dumps({**values, "include_prompt": False}), encoding="utf-8")
    with pytest.raises(InputError, match="leaves its prompt out of the pooling, which Ragstone cannot apply"):
        load_encoder(str(folder), "passage")
    pooling.write_text(json.dumps({**values, "pooling_mode": ["mean", "cls"]}), encoding="utf-8")
    with pytest.raises(InputError, match=r"asks for the pooling \['mean', 'cls'\], but Ragstone knows only one of"):
        load_encoder(str(folder), "passage")


def test_lower_case_that_the_tokenizer_does_not_make(
    models_folder: Path, plain_bert_folder: Path, tmp_path: Path
) -> None:
    folder = saved(tmp_path / "model", plain_bert_folder, "mean", False, {})
    config = folder / "sentence_bert_config.json"
    config.write_text(json.dumps({"max_seq_length": 36, "do_lower_case": True}), encoding="utf-8")
    assert load_encoder(str(folder), "passage").settings.pooling == "mean", "this tokenizer does"
    tokenizer = folder / "tokenizer.json"
    values = json.loads(tokenizer.read_text(encoding="utf-8"))
    values["normalizer"] = None
    values["model"]["vocab"] |= {"ABCDEF": len(values["model"]["vocab"])}
    tokenizer.write_text(json.dumps(values), encoding="utf-8")
    with pytest.raises(InputError, match="wants lower-cased text, but its tokenizer does not make it so"):
        load_encoder(str(folder), "passage")


def test_which_models_encode_both_sides(minilm_folder: str, plain_bert_folder: Path) -> None:
    assert is_sentence_transformers(minilm_folder)
    assert not is_sentence_transformers(str(plain_bert_folder))
