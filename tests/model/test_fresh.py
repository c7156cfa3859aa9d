"""Generators without pretraining: what their tokenizers spell, and what they inherit from a BERT."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import (
    AutoModel,
    AutoModelForSeq2SeqLM,
    AutoTokenizer,
    BertConfig,
    BertModel,
    RobertaConfig,
    RobertaModel,
)

from ragstone.encoders.fresh import fresh_encoder, train_tokenizer
from ragstone.encoders.load import save_encoder
from ragstone.errors import InputError
from ragstone.model.fresh import GeneratorSize, fresh_generator, generator_from_encoder, train_generator_tokenizer

TEXTS = ["Anna Sorel founded the town of Rivermouth in 1872.", "The old bridge, built by Otto Maranne, is red."] * 5


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """As it comes back from its folder."""
    folder = tmp_path_factory.mktemp("tokenizer")
    train_generator_tokenizer(TEXTS, 400).save_pretrained(folder)
    return AutoTokenizer.from_pretrained(folder)


@pytest.mark.parametrize(
    "text",
    [
        "Anna Sorel",
        "naïve café, ÅNGSTRÖM!",
        "日本語のテキスト",
        "👩‍👩‍👧 and 🇫🇷",
        "a , b . c ' d",
        "two  blanks\tand a tab",
        "it's 1,000.5 % of x² ≠ ∑",
        "עברית and العربية",
        "e\u0301 is not \u00e9",
    ],
)
def test_any_text_comes_back_as_it_was(tokenizer: Any, text: str) -> None:
    ids = tokenizer(text)["input_ids"]
    assert tokenizer.unk_token_id not in ids
    assert ids[-1] == tokenizer.eos_token_id
    assert tokenizer.decode(ids, skip_special_tokens=True).strip() == text


@settings(max_examples=200, deadline=None)
@given(st.text(st.characters(exclude_categories=["Cs"]), max_size=30))
def test_every_text_comes_back(tokenizer: Any, text: str) -> None:
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    back = tokenizer.decode(ids)
    # Where it begins with white space, none is put before it.
    assert text in (back, back.removeprefix(" "))


@pytest.mark.parametrize("name", ["Rivermouth", "Zwyx", "Otto Maranne", "1872", "Ünder"])
def test_an_answer_has_the_tokens_that_it_has_in_a_passage(tokenizer: Any, name: str) -> None:
    """So that answering is copying."""
    answer = tokenizer(text_target=name, add_special_tokens=False)["input_ids"]
    context = tokenizer(f"It was {name} of old")["input_ids"]
    found = [context[i : i + len(answer)] for i in range(len(context))]
    assert answer in found


def test_the_vocabulary_is_no_larger_than_asked_for() -> None:
    assert 256 + 3 < len(train_generator_tokenizer(TEXTS, 300)) <= 300


def test_a_fresh_generator_keeps_tokens_apart(tokenizer: Any) -> None:
    model = fresh_generator(tokenizer, GeneratorSize(d_model=64, heads=4, encoder_layers=1, decoder_layers=1))
    embeddings = model.model.shared.weight.detach()
    used = torch.nn.functional.normalize(embeddings[[i for i in range(300) if i != tokenizer.pad_token_id]], dim=1)
    similar = (used @ used.T).fill_diagonal_(0).abs()
    assert similar.mean() < 0.15
    assert embeddings.norm(dim=1).median() == pytest.approx(1.0, abs=0.1)


def test_equal_seeds_give_equal_weights(tokenizer: Any, bert_folder: Path) -> None:
    size = GeneratorSize(d_model=16, heads=2, encoder_layers=1, decoder_layers=1)

    def fresh(seed: int) -> Any:
        torch.manual_seed(seed + 100)
        before = torch.get_rng_state()
        model = fresh_generator(tokenizer, size, seed)
        assert torch.equal(torch.get_rng_state(), before), "other random numbers stay as they were"
        return model

    def inherited(seed: int) -> Any:
        return generator_from_encoder(str(bert_folder), 1, 1, seed=seed)[0]

    first, again, other = (fresh(seed).state_dict() for seed in (1, 1, 2))
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert not torch.equal(first["model.shared.weight"], other["model.shared.weight"])
    first, again = (inherited(1).state_dict() for _ in range(2))
    assert all(torch.equal(first[name], again[name]) for name in first)


@pytest.fixture(scope="module")
def bert_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A BERT of three layers with a tokenizer of its own."""
    folder = tmp_path_factory.mktemp("bert")
    save_encoder(fresh_encoder(train_tokenizer(TEXTS, 200), hidden_size=32, layers=3, max_length=64), folder)
    return folder


@pytest.mark.parametrize("which", ["small", "minilm"])
def test_the_encoder_does_what_the_bert_did(which: str, bert_folder: Path, minilm_folder: str) -> None:
    """With all its layers, on real text and padding: the same hidden states."""
    folder = str(bert_folder) if which == "small" else minilm_folder
    bert = AutoModel.from_pretrained(folder).eval()
    layers = bert.config.num_hidden_layers
    model, tokenizer = generator_from_encoder(folder, layers, 1)
    batch = tokenizer(["Anna Sorel founded the old town.", "red bridge"], padding=True, return_tensors="pt")
    real = batch["attention_mask"].bool()
    with torch.no_grad():
        expected = bert(**batch).last_hidden_state
        found = model.get_encoder()(**batch).last_hidden_state
    torch.testing.assert_close(found[real], expected[real], rtol=0, atol=1e-3)
    # What is left is BART's other epsilon.
    for module in model.modules():
        if isinstance(module, torch.nn.LayerNorm):
            module.eps = bert.config.layer_norm_eps
    with torch.no_grad():
        found = model.get_encoder()(**batch).last_hidden_state
    torch.testing.assert_close(found[real], expected[real], rtol=0, atol=1e-5)
    assert expected[real].abs().max() > 0.1
    assert model.config.max_position_embeddings == bert.config.max_position_embeddings - 2


def test_the_decoder_takes_the_last_layers(bert_folder: Path) -> None:
    bert = AutoModel.from_pretrained(bert_folder)
    model, _ = generator_from_encoder(str(bert_folder), 1, 2)
    for layer, block in zip(model.model.decoder.layers, bert.encoder.layer[1:], strict=True):
        query = block.attention.self.query.weight
        assert torch.equal(layer.self_attn.q_proj.weight, query)
        assert torch.equal(layer.encoder_attn.q_proj.weight, query)
        assert torch.equal(layer.fc2.weight, block.output.dense.weight)


def test_its_tokenizer_ends_texts_and_starts_none(bert_folder: Path, tmp_path: Path) -> None:
    model, tokenizer = generator_from_encoder(str(bert_folder), 1, 1)
    tokenizer.save_pretrained(tmp_path)
    model.save_pretrained(tmp_path)
    known, again = AutoTokenizer.from_pretrained(bert_folder), AutoTokenizer.from_pretrained(tmp_path)
    # BERT's [CLS] before the text is left out.
    assert again("the old bridge")["input_ids"] == known("the old bridge")["input_ids"][1:]
    reloaded = AutoModelForSeq2SeqLM.from_pretrained(tmp_path)
    assert reloaded.config.decoder_start_token_id == known.sep_token_id
    assert torch.equal(reloaded.model.shared.weight, model.model.shared.weight)


def test_what_it_cannot_start_from(bert_folder: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"--encoder_layers is 4, but .* has 3 layers"):
        generator_from_encoder(str(bert_folder), 4, 1)
    with pytest.raises(InputError, match=r"--decoder_layers is 9, but .* has 3 layers"):
        generator_from_encoder(str(bert_folder), 1, 9)
    shape = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1, "intermediate_size": 8}
    RobertaModel(RobertaConfig(vocab_size=20, **shape)).save_pretrained(tmp_path / "roberta")
    with pytest.raises(InputError, match="is a roberta model, but a generator can start only from the layers"):
        generator_from_encoder(str(tmp_path / "roberta"), 1, 1)
    with pytest.raises(InputError, match="neither a folder nor a model that can be reached"):
        generator_from_encoder("some/nowhere", 1, 1)
    BertModel(BertConfig(vocab_size=20, **shape)).save_pretrained(tmp_path / "untokenized")
    with pytest.raises(InputError, match=r"The tokenizer in .*untokenized cannot be read \(it has no vocabulary\)"):
        generator_from_encoder(str(tmp_path / "untokenized"), 1, 1)
    AutoTokenizer.from_pretrained(bert_folder).save_pretrained(tmp_path / "untokenized")
    with pytest.raises(InputError, match="but the encoder 20; save the encoder's own tokenizer with it"):
        generator_from_encoder(str(tmp_path / "untokenized"), 1, 1)


def test_rows_of_no_token_are_left_out(bert_folder: Path, tmp_path: Path) -> None:
    bert, tokenizer = AutoModel.from_pretrained(bert_folder), AutoTokenizer.from_pretrained(bert_folder)
    bert.resize_token_embeddings(len(tokenizer) + 24, mean_resizing=False)
    bert.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    model, found = generator_from_encoder(str(tmp_path), 1, 1)
    assert model.config.vocab_size == len(found) == len(tokenizer)
    rows = bert.embeddings.word_embeddings.weight
    assert torch.equal(model.model.shared.weight, rows[: len(tokenizer)])
