"""Opening and saving encoders, held against sentence-transformers and transformers' own classes."""

from __future__ import annotations

import dataclasses
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from sentence_transformers import SentenceTransformer
from transformers import (
    AutoTokenizer,
    BertConfig,
    BertForMaskedLM,
    BertModel,
    DPRContextEncoder,
    DPRQuestionEncoder,
    GPT2Config,
    GPT2Model,
    LongT5Config,
    LongT5Model,
    PreTrainedTokenizerFast,
)

from ragstone.encoders.load import load_encoder, save_encoder
from ragstone.encoders.pooling import Pooling
from ragstone.encoders.text_encoder import TextEncoder
from ragstone.errors import InputError
from tests.conftest import keep_as_downloaded

TEXTS = [
    "Who founded the town?",
    "Otto",
    "The hill by the old river was red, and the bridge of stone that Anna built over it was blue and green.",
    "river " * 400,
    "Zwölf Brücken, 1749",
]


def test_real_sentence_transformers_model(minilm_folder: str) -> None:
    ours = load_encoder(minilm_folder, "passage")
    assert (ours.settings.pooling, ours.settings.normalize, ours.settings.max_length) == ("mean", True, 256)
    theirs = SentenceTransformer(minilm_folder, device="cpu")
    np.testing.assert_allclose(ours.embed(TEXTS, batch_size=2), theirs.encode(TEXTS, batch_size=2), atol=1e-5)


@pytest.mark.parametrize("pooling", ["mean", "cls", "last"])
@pytest.mark.parametrize("normalize", [False, True])
def test_sentence_transformers_opens_what_is_saved(
    encoder: TextEncoder, pooling: Pooling, normalize: bool, tmp_path: Path
) -> None:
    encoder.settings = dataclasses.replace(encoder.settings, pooling=pooling, normalize=normalize)
    save_encoder(encoder, tmp_path)
    theirs = SentenceTransformer(str(tmp_path), device="cpu")
    np.testing.assert_allclose(encoder.embed(TEXTS), theirs.encode(TEXTS), atol=1e-5)
    back = load_encoder(str(tmp_path), "passage")
    assert back.settings == encoder.settings
    assert back.fingerprint() == encoder.fingerprint()
    assert back.embed(TEXTS).tolist() == encoder.embed(TEXTS).tolist()


def test_what_sentence_transformers_saves_opens_here(minilm_folder: str, tmp_path: Path) -> None:
    theirs = SentenceTransformer(minilm_folder, device="cpu", prompts={"query": "ask: ", "document": "tell: "})
    theirs.save(str(tmp_path))
    for side, prompt in (("question", "query"), ("passage", "document")):
        ours = load_encoder(str(tmp_path), side)
        np.testing.assert_allclose(ours.embed(TEXTS[:3]), theirs.encode(TEXTS[:3], prompt_name=prompt), atol=1e-5)


def test_prompts_of_both_sides(encoder: TextEncoder, tmp_path: Path) -> None:
    encoder.settings = dataclasses.replace(encoder.settings, prompt="query: ")
    save_encoder(encoder, tmp_path)
    assert load_encoder(str(tmp_path), "question").settings == encoder.settings
    assert load_encoder(str(tmp_path), "question", prompt="").settings.prompt == ""
    theirs = SentenceTransformer(str(tmp_path), device="cpu")
    np.testing.assert_allclose(encoder.embed(TEXTS), theirs.encode(TEXTS, prompt_name="query"), atol=1e-5)


@pytest.mark.parametrize(
    ("name", "side", "model_class"),
    [("question_encoder", "question", DPRQuestionEncoder), ("passage_encoder", "passage", DPRContextEncoder)],
)
def test_dpr_encoders_are_transformers_own(
    models_folder: Path, name: str, side: str, model_class: type, tmp_path: Path
) -> None:
    ours = load_encoder(str(models_folder / name), side)
    assert type(ours.model) is model_class
    tokens = ours.tokenizer(["town", "hill"], ["otto founded the old town", "red"], padding=True, return_tensors="pt")
    with torch.no_grad():
        expected = model_class.from_pretrained(models_folder / name)(**tokens).pooler_output
    np.testing.assert_allclose(ours.embed(["otto founded the old town", "red"], ["town", "hill"]), expected, atol=1e-6)
    assert ours.settings.max_length == 64, "of the model's positions"
    save_encoder(ours, tmp_path)
    back = load_encoder(str(tmp_path), side)
    assert type(back.model) is model_class
    assert back.fingerprint() == ours.fingerprint()


def test_of_a_t5_the_encoder_alone_is_taken(t5_folder: Path, tmp_path: Path) -> None:
    """As sentence-transformers does; its decoder is not needed, and not written again."""
    theirs = SentenceTransformer(str(t5_folder), device="cpu")
    theirs.save(str(tmp_path / "theirs"))
    texts = ["otto founded the old town", "red", "the hill by the old river was red"]
    for name in (str(tmp_path / "theirs"), str(t5_folder)):
        ours = load_encoder(name, "passage", pooling="mean")
        np.testing.assert_allclose(ours.embed(texts), theirs.encode(texts), atol=1e-5)
    save_encoder(ours, tmp_path / "ours")
    assert not [name for name in load_file(tmp_path / "ours" / "model.safetensors") if "decoder" in name]
    back = load_encoder(str(tmp_path / "ours"), "passage")
    assert back.fingerprint() == ours.fingerprint()
    opened = SentenceTransformer(str(tmp_path / "ours"), device="cpu")
    np.testing.assert_allclose(back.embed(texts), opened.encode(texts), atol=1e-5)


def test_what_reads_no_text_without_an_answer_is_refused(t5_folder: Path, tmp_path: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(t5_folder)
    sizes = {"d_model": 16, "d_kv": 8, "d_ff": 32, "num_layers": 1, "num_heads": 2}
    LongT5Model(LongT5Config(vocab_size=len(tokenizer), **sizes)).save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    with pytest.raises(InputError, match="is a longt5 model, which makes no vector of a text alone; take an encoder"):
        load_encoder(str(tmp_path), "question")


def test_a_length_given_for_dpr_is_kept(models_folder: Path, tmp_path: Path) -> None:
    encoder = load_encoder(str(models_folder / "passage_encoder"), "passage", max_length=20)
    save_encoder(encoder, tmp_path)
    back = load_encoder(str(tmp_path), "passage")
    assert back.settings.max_length == 20
    assert back.fingerprint() == encoder.fingerprint()


def test_dpr_pools_in_its_own_way(models_folder: Path) -> None:
    with pytest.raises(InputError, match="is a DPR encoder, which pools in its own way; leave --pooling out"):
        load_encoder(str(models_folder / "passage_encoder"), "passage", pooling="mean")


def test_any_other_model_pools_as_told(plain_bert_folder: Path, tmp_path: Path) -> None:
    encoder = load_encoder(str(plain_bert_folder), "question")
    assert (encoder.settings.pooling, encoder.settings.normalize) == ("cls", False)
    model = BertModel.from_pretrained(plain_bert_folder)
    with torch.no_grad():
        states = model(**encoder.tokenizer(["the old town"], return_tensors="pt")).last_hidden_state
    np.testing.assert_allclose(encoder.embed(["the old town"])[0], states[0, 0], atol=1e-6)
    mean = load_encoder(str(plain_bert_folder), "question", pooling="mean", normalize=True)
    expected = torch.nn.functional.normalize(states[0].mean(dim=0), dim=0)
    np.testing.assert_allclose(mean.embed(["the old town"])[0], expected, atol=1e-6)
    save_encoder(mean, tmp_path)
    assert load_encoder(str(tmp_path), "question").settings == mean.settings


def test_decoder_only_model_without_a_padding_token(
    tmp_path: Path, generator_tokenizer: PreTrainedTokenizerFast
) -> None:
    """Its vectors do not depend on the batch, though its own tokenizer pads on the left and it counts positions."""
    generator_tokenizer.save_pretrained(tmp_path)
    saved = json.loads((tmp_path / "tokenizer_config.json").read_text(encoding="utf-8"))
    saved.pop("pad_token")
    saved["padding_side"] = "left"
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(saved), encoding="utf-8")
    torch.manual_seed(0)
    GPT2Model(GPT2Config(vocab_size=len(generator_tokenizer), n_embd=16, n_layer=1, n_head=2)).save_pretrained(tmp_path)
    encoder = load_encoder(str(tmp_path), "question", pooling="last")
    texts = ["the old town by the river", "red"]
    alone = np.stack([encoder.embed([text])[0] for text in texts])
    np.testing.assert_allclose(encoder.embed(texts), alone, atol=1e-5)


def test_model_of_the_hub_says_how_it_pools(minilm_folder: str, tmp_path: Path) -> None:
    keep_as_downloaded(Path(minilm_folder), "some/minilm", tmp_path)
    downloaded = load_encoder("some/minilm", "passage", cache_dir=str(tmp_path))
    assert downloaded.settings == load_encoder(minilm_folder, "passage").settings
    assert downloaded.fingerprint() == load_encoder(minilm_folder, "passage").fingerprint()


def test_missing_weights_are_refused_unless_allowed(plain_bert_folder: Path, tmp_path: Path) -> None:
    shutil.copytree(plain_bert_folder, tmp_path, dirs_exist_ok=True)
    config = json.loads((tmp_path / "config.json").read_text(encoding="utf-8"))
    (tmp_path / "config.json").write_text(json.dumps({**config, "num_hidden_layers": 2}), encoding="utf-8")
    with pytest.raises(InputError, match=r"lacks 16 of the weights .*encoder\.layer\.1\..*, or save this one whole\.$"):
        load_encoder(str(tmp_path), "question")
    with pytest.raises(InputError, match=r"lacks 16 of the weights .*--allow_new_weights"):
        load_encoder(str(tmp_path), "question", allow_new_weights=False)
    assert load_encoder(str(tmp_path), "question", allow_new_weights=True).dimension == 24


def test_a_pooler_that_is_not_used_may_be_missing(
    plain_bert_folder: Path, tmp_path: Path, question_tokenizer: PreTrainedTokenizerFast
) -> None:
    BertForMaskedLM(BertConfig.from_pretrained(plain_bert_folder)).save_pretrained(tmp_path)
    question_tokenizer.save_pretrained(tmp_path)
    assert load_encoder(str(tmp_path), "question").dimension == 24


@pytest.mark.parametrize("kind", ["bert", "dpr", "t5", "bart"])
def test_a_folder_without_a_tokenizer(
    kind: str, plain_bert_folder: Path, models_folder: Path, t5_folder: Path, tmp_path: Path
) -> None:
    """transformers would make up one that knows no word."""
    folders = {"bert": plain_bert_folder, "dpr": models_folder / "passage_encoder", "t5": t5_folder}
    names = ("config.json", "model.safetensors")
    for name in names:
        shutil.copyfile(folders.get(kind, models_folder / "generator") / name, tmp_path / name)
    with pytest.raises(InputError, match=r"The tokenizer in .* cannot be read \(it has no vocabulary\); save it again"):
        load_encoder(str(tmp_path), "passage", allow_new_weights=True)


def test_neither_folder_nor_reachable() -> None:
    with pytest.raises(InputError, match="'no/such-model' is neither a folder nor a model that can be reached"):
        load_encoder("no/such-model", "question")


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("config.json", "{}", "cannot be read"),
        ("modules.json", "[", "modules.json is not JSON"),
        (
            "modules.json",
            '[{"type": "a.Transformer", "path": ""}, {"type": "a.Dense", "path": "1_Dense"}]',
            "1_Dense/config.json names no",
        ),
        (
            "modules.json",
            '[{"type": "a.Transformer", "path": ""}, {"type": "a.WordWeights", "path": "1_W"}]',
            "'WordWeights'",
        ),
        ("1_Pooling/config.json", '{"pooling_mode_max_tokens": true}', "asks for the pooling"),
        ("model.safetensors", "nonsense", "cannot be read"),
    ],
)
def test_damaged_folders(encoder: TextEncoder, tmp_path: Path, name: str, content: str, message: str) -> None:
    save_encoder(encoder, tmp_path)
    (tmp_path / name).write_text(content, encoding="utf-8")
    with pytest.raises(InputError, match=message) as caught:
        load_encoder(str(tmp_path), "question")
    assert "\n" not in str(caught.value)


def test_words_alone_are_read_as_the_model_needs_them(plain_bert_folder: Path, tmp_path: Path) -> None:
    """A folder that holds vocab.txt only, as BERT's first releases did."""
    known = load_encoder(str(plain_bert_folder), "question")
    words = sorted(known.tokenizer.get_vocab(), key=known.tokenizer.get_vocab().get)
    (tmp_path / "vocab.txt").write_text("".join(f"{word}\n" for word in words), encoding="utf-8")
    encoder = load_encoder(str(plain_bert_folder), "question", tokenizer_name_or_path=str(tmp_path))
    texts = ["who founded the town ?", "the river is blue"]
    assert encoder.token_lists(texts)["input_ids"] == known.token_lists(texts)["input_ids"]
