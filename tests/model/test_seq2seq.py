"""Sequence-to-sequence generators: truncation, padding, native labels."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForSeq2SeqLM, AutoTokenizer

from ragstone.errors import InputError
from ragstone.model.decoding import Decoding
from ragstone.model.seq2seq import Seq2SeqGenerator

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
