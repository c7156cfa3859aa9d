"""Sequence-to-sequence generators: truncation, padding, native labels."""

from __future__ import annotations

import functools
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import (
    AutoModelForSeq2SeqLM,
    AutoTokenizer,
    BartConfig,
    BartForConditionalGeneration,
    MarianConfig,
    MarianMTModel,
)

from ragstone.errors import InputError
from ragstone.model.decoding import Decoding
from ragstone.model.open import ModelRequest, open_model
from ragstone.model.reader import Reader
from ragstone.model.seq2seq import Seq2SeqContexts, Seq2SeqGenerator
from ragstone.model.shared_lookup import SharedTable
from tests.conftest import join_models
from tests.model.families import FAMILIES, POSITIONS, SMALL, open_family

WITHOUT_END = ("T5", "T5 v1.1, Flan-T5", "byT5", "mT5", "umT5")
HEAD, TAIL = "town / the river of the old town is blue", " // who founded it ?"


@pytest.fixture(params=["bart", "t5"])
def generator(request: pytest.FixtureRequest, models_folder: Path, t5_folder: Path) -> Seq2SeqGenerator:
    folder = {"bart": models_folder / "generator", "t5": t5_folder}[request.param]
    return Seq2SeqGenerator(AutoModelForSeq2SeqLM.from_pretrained(folder).eval(), AutoTokenizer.from_pretrained(folder))


def _states(generator: Seq2SeqGenerator, text: str) -> torch.Tensor:
    """What the encoder makes of a text that is not cut."""
    inputs = generator.tokenizer([text], return_tensors="pt")
    return generator.model.get_encoder()(**{k: inputs[k] for k in ("input_ids", "attention_mask")}).last_hidden_state


@pytest.mark.parametrize("words", range(10))
def test_a_long_passage_is_cut_and_the_question_is_not(generator: Seq2SeqGenerator, words: int) -> None:
    """Whatever the limit leaves of the passage is its start; special tokens stay at both ends."""
    specials = len(generator.tokenizer("")["input_ids"])
    limit = words + len(TAIL.split()) + specials
    (found,) = generator.encode([(HEAD, TAIL)], limit).states
    expected = " ".join(HEAD.split()[:words]) + TAIL
    torch.testing.assert_close(found, _states(generator, expected)[0])


def test_a_question_longer_than_the_limit_loses_its_end(generator: Seq2SeqGenerator) -> None:
    specials = len(generator.tokenizer("")["input_ids"])
    (found,) = generator.encode([(HEAD, TAIL)], 3 + specials).states
    torch.testing.assert_close(found, _states(generator, "// who founded")[0])


def test_long_and_short_contexts_in_one_batch(generator: Seq2SeqGenerator) -> None:
    limit = 9
    contexts = generator.encode([(HEAD, TAIL), ("", "who ?")], limit)
    assert contexts.states.shape[1] == limit
    for row, text in enumerate([(HEAD, TAIL), ("", "who ?")]):
        (alone,) = generator.encode([text], limit).states
        torch.testing.assert_close(contexts.states[row, : len(alone)], alone)
        assert contexts.attention_mask[row].sum() == len(alone)


def test_targets_are_the_models_labels(generator: Seq2SeqGenerator) -> None:
    """Padded with -100, cut with their end token, and shifted as the model itself shifts them."""
    labels = generator.tokenize_targets(["otto", "the old river of the town"], 5)
    end = generator.model.config.eos_token_id
    assert labels.shape == (2, 5)
    assert labels[1, -1] == end
    assert (labels[0] == -100).tolist() == [label == -100 for label in labels[0].tolist()]
    assert labels[0][labels[0] != -100][-1] == end
    contexts = generator.encode([(HEAD, TAIL)] * 2, 300)
    inputs = generator.tokenizer([HEAD + TAIL] * 2, return_tensors="pt")
    expected = generator.model(
        input_ids=inputs["input_ids"], attention_mask=inputs["attention_mask"], labels=labels
    ).logits
    valid = labels != -100
    torch.testing.assert_close(generator.target_logits(contexts, labels.unsqueeze(1)), expected[valid])


def test_targets_are_padded_to_the_longest_only(generator: Seq2SeqGenerator) -> None:
    alone = generator.tokenize_targets(["the old river"], 25)
    assert (alone != -100).all() and alone.shape[1] < 25
    assert generator.tokenize_targets(["otto", "the old river"], 25).shape == (2, alone.shape[1])


def test_padding_on_the_left_is_not_followed(generator: Seq2SeqGenerator) -> None:
    """A tokenizer that pads on the left would shift the positions of contexts and targets."""
    expected = generator.encode([(HEAD, TAIL), ("", "who ?")], 300)
    labels = generator.tokenize_targets(["otto", "the old river"], 9)
    generator.tokenizer.padding_side = "left"
    found = generator.encode([(HEAD, TAIL), ("", "who ?")], 300)
    torch.testing.assert_close(found.states, expected.states)
    assert torch.equal(generator.tokenize_targets(["otto", "the old river"], 9), labels)


def test_a_generator_without_start_token_is_refused(generator: Seq2SeqGenerator) -> None:
    generator.model.config.decoder_start_token_id = None
    generator.model.generation_config.decoder_start_token_id = None
    contexts = generator.encode([(HEAD, TAIL)], 300)
    with pytest.raises(InputError, match="names no decoder_start_token_id"):
        generator.search(contexts, torch.zeros(1, 1), Decoding())


def test_several_end_tokens(generator: Seq2SeqGenerator) -> None:
    """An answer stops behind whichever comes first and keeps it; what pads a batch behind it is gone."""
    contexts = generator.encode([(HEAD, TAIL), ("", "who ?")], 300)
    plain = [rows[0] for rows in generator.search(contexts, torch.zeros(2, 1), Decoding(1, max_length=12))]
    assert max(map(len, plain)) > 1
    stop: Any = [generator.model.config.eos_token_id, plain[0][0]]
    generator.model.generation_config.eos_token_id = stop
    found = [rows[0] for rows in generator.search(contexts, torch.zeros(2, 1), Decoding(1, max_length=12))]
    for row, before in zip(found, plain, strict=True):
        first = min((before.index(label) for label in stop if label in before), default=len(before))
        assert row == before[: first + 1]
    assert found[0] == plain[0][:1]


@pytest.mark.parametrize("name", FAMILIES)
def test_what_there_are_no_positions_for(name: str, family_folder: Callable[[str], Path]) -> None:
    """A generator reads and writes as much as its positions allow; T5's have no end."""
    generator = open_family(name, family_folder(name))
    contexts = generator.encode([("", "a b " * 100)], generator.longest_context() or 300)
    assert contexts.states.shape[1] <= (generator.longest_context() or 300)
    decoding = Decoding(1, min_length=POSITIONS, max_new_tokens=POSITIONS)
    (answers,) = generator.search(contexts, torch.zeros(1, 1), decoding)
    assert len(answers[0]) >= POSITIONS - 1
    longer = Decoding(1, max_new_tokens=POSITIONS + 1)
    if name in WITHOUT_END:
        assert (generator.longest_context(), generator.longest_target) == (None, None)
        generator.search(contexts, torch.zeros(1, 1), longer)
    else:
        assert (generator.longest_context(), generator.longest_target) == (POSITIONS, POSITIONS)
        with pytest.raises(
            InputError, match=f"Answers may get {POSITIONS + 1} tokens .* generator can write {POSITIONS};"
        ):
            generator.search(contexts, torch.zeros(1, 1), longer)


@pytest.mark.parametrize(
    ("request_", "message"),
    [
        ({"max_combined_length": 513}, "max_combined_length is 513, but the generator has positions for 512 tokens"),
        ({"max_target_length": 513}, "max_target_length is 513, but the generator has positions for 512 tokens"),
        ({"max_source_length": 513}, "max_source_length is 513, but the generator has positions for 512 tokens"),
        ({"longest_answer": 513}, "may be written .* is 513, but the generator has positions for 512 tokens"),
    ],
)
def test_lengths_beyond_the_positions_are_refused(request_: dict[str, int], message: str, models_folder: Path) -> None:
    with pytest.raises(InputError, match=message):
        open_model(ModelRequest(str(models_folder / "generator"), **request_))


def test_who_only_asks_needs_no_positions_for_learning(models_folder: Path, tmp_path: Path) -> None:
    """A generator of 16 positions; what a loss looks at is as much as it has room for."""
    config = BartConfig.from_pretrained(models_folder / "generator", max_position_embeddings=16)
    torch.manual_seed(0)
    BartForConditionalGeneration(config).save_pretrained(tmp_path)
    AutoTokenizer.from_pretrained(models_folder / "generator").save_pretrained(tmp_path)
    model: Any = open_model(ModelRequest(str(tmp_path), longest_answer=7))
    assert model.generate(["who ?"], Decoding(max_length=8))
    assert model(["who ?"], ["the old town " * 10]).target_tokens == 16
    with pytest.raises(InputError, match="max_target_length is 17, but the generator has positions for 16 tokens"):
        open_model(ModelRequest(str(tmp_path), max_target_length=17))


@pytest.mark.parametrize(("name", "length"), [("BART", 3), ("T5", 2), ("Llama", 2)])
def test_lengths_have_room_for_a_token_of_the_text(
    name: str,
    length: int,
    checkpoint_folder: Path,
    t5_checkpoint_folder: Path,
    llama_folder: Path,
    models_folder: Path,
    source_folder: Path,
    tmp_path: Path,
) -> None:
    """Below it, tokenizers do not cut at all, and contexts would lose what they end with."""
    if name == "Llama":
        folder = join_models(llama_folder, models_folder / "question_encoder", tmp_path / "rag")
    else:
        folder = {"BART": checkpoint_folder, "T5": t5_checkpoint_folder}[name]
    opened: Callable[..., Any] = functools.partial(ModelRequest, str(folder), passages_path=str(source_folder))
    for limit, least in (("max_combined_length", length), ("max_target_length", length), ("max_source_length", 3)):
        message = f"{limit} is {least - 1}, but must be at least {least}: special tokens take {least - 1}"
        with pytest.raises(InputError, match=message):
            open_model(opened(**{limit: least - 1}))
        model = open_model(opened(**{limit: least}))
        if limit == "max_target_length":
            assert model.generator.tokenize_targets(["the old town"], least).shape[1] == least
        if limit == "max_combined_length":
            ids = model.generator.context_tokenizer.ids([("the old", " town")], least, closes=name != "Llama")
            assert len(ids[0]) == least


def test_a_closed_books_input_has_room_for_a_token_of_the_text(models_folder: Path) -> None:
    with pytest.raises(InputError, match="max_source_length is 2, but must be at least 3: special tokens take 2"):
        open_model(ModelRequest(str(models_folder / "generator"), max_source_length=2))


def test_a_recorded_length_beyond_the_positions(
    family_folder: Callable[[str], Path], models_folder: Path, source_folder: Path, tmp_path: Path
) -> None:
    """transformers' default of 300 is cut to what a small generator has, in a new checkpoint and in an old one."""
    folder = join_models(family_folder("BART"), models_folder / "question_encoder", tmp_path / "rag")
    config = json.loads((folder / "config.json").read_text())
    assert config["max_combined_length"] == POSITIONS
    (folder / "config.json").write_text(json.dumps({**config, "max_combined_length": 300}))
    model: Any = open_model(ModelRequest(str(folder), passages_path=str(source_folder), n_docs=2))
    assert model.options.context.max_length == POSITIONS
    (answers,) = model.generate(["a b c " * 40], Decoding(max_length=6))
    assert answers


def test_words_that_a_generator_never_writes(family_folder: Callable[[str], Path]) -> None:
    """Marian's padding, from its own generation settings; what a caller forbids takes their place."""
    generator = open_family("Marian", family_folder("Marian"))
    pad = generator.model.config.pad_token_id
    with torch.no_grad():
        generator.model.final_logits_bias[0, pad] = 100.0
    contexts = generator.encode([("", "a b"), ("", "c")], 20)
    for kind in ("sequence", "token"):
        for row in Reader(generator, kind).generate(contexts, torch.zeros(2, 1), Decoding(2, max_length=6)):
            assert pad not in row[0].labels
    (row,) = generator.search(
        contexts.select(torch.tensor([0])), torch.zeros(1, 1), Decoding(1, max_length=6, bad_words_ids=())
    )
    assert row[0][0] == pad


def test_another_vocabulary_to_write_than_to_read() -> None:
    """As Marian has it where the two languages share no words."""
    torch.manual_seed(0)
    config = MarianConfig(
        vocab_size=5,
        decoder_vocab_size=9,
        share_encoder_decoder_embeddings=False,
        pad_token_id=4,
        eos_token_id=0,
        decoder_start_token_id=4,
        forced_eos_token_id=None,
        max_position_embeddings=POSITIONS,
        **SMALL,
    )
    model = MarianMTModel(config).eval()
    generator = Seq2SeqGenerator(model, None)
    ids = torch.tensor([[1, 2, 3, 0]])
    states = model.get_encoder()(input_ids=ids).last_hidden_state
    contexts = Seq2SeqContexts(states, torch.ones_like(ids), SharedTable(None))
    options = {"num_beams": 3, "num_return_sequences": 3, "max_length": 7}
    (found,) = generator.search(contexts, torch.zeros(1, 1), Decoding(bad_words_ids=(), **options))
    expected = MarianMTModel.generate(model, input_ids=ids, **options)[:, 1:].tolist()
    assert found == [row[: row.index(0) + 1] if 0 in row else row for row in expected]
