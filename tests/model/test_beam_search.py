"""Beam search against transformers' own, with every setting that changes what it finds."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from transformers import BartConfig, BartForConditionalGeneration
from transformers.modeling_outputs import BaseModelOutput

from ragstone.model import beam_search as module
from ragstone.model.decoding import Decoding
from ragstone.model.lora import LoraSettings, add_adapters
from ragstone.model.selected_positions import without_zero_bias
from ragstone.model.seq2seq import Seq2SeqContexts, Seq2SeqGenerator
from ragstone.model.shared_lookup import SharedTable
from tests.model.families import FAIRSEQ_IDS, SMALL

GROUPS = 6
LONGEST = 14
SEARCHES: dict[str, dict[str, Any]] = {
    "plain": {},
    "early": {"early_stopping": True},
    "never early": {"early_stopping": "never"},
    "short answers": {"length_penalty": -1.0, "early_stopping": "never"},
    "long answers": {"length_penalty": 3.0, "early_stopping": "never"},
    "no penalty": {"length_penalty": 0.0},
    "no repeats": {"no_repeat_ngram_size": 2},
    "repeats cost": {"repetition_penalty": 1.7},
    "two ends": {"eos_token_id": [2, 7]},
    "forced end": {"forced_eos_token_id": 2},
    "forced start": {"forced_bos_token_id": 5},
    "suppressed": {"suppress_tokens": [6, 8]},
}


@pytest.fixture(scope="module")
def generator() -> Any:
    """A BART whose answers end after few tokens or many, as their contexts have it."""
    torch.manual_seed(3)
    config = BartConfig(vocab_size=40, max_position_embeddings=32, decoder_start_token_id=2, **FAIRSEQ_IDS, **SMALL)
    model: Any = BartForConditionalGeneration(config).eval()
    model.final_logits_bias[0, config.eos_token_id] = 4.0
    return Seq2SeqGenerator(model, None)


@pytest.fixture(scope="module")
def contexts() -> Seq2SeqContexts:
    """Some with padding, which is noise."""
    generator = torch.Generator().manual_seed(1)
    lengths = torch.tensor([3, 9, 4, 9, 6, 1])
    states = 2 * torch.randn(GROUPS, 9, SMALL["d_model"], generator=generator)
    return Seq2SeqContexts(states, (torch.arange(9) < lengths[:, None]).long(), SharedTable(None))


def _theirs(generator: Seq2SeqGenerator, contexts: Seq2SeqContexts, options: dict[str, Any]) -> list[list[list[int]]]:
    """What transformers' generate finds for each context alone."""
    found = []
    stop = options.get("eos_token_id", generator.model.generation_config.eos_token_id)
    ends = set(stop if isinstance(stop, list) else [stop])
    for row in range(len(contexts)):
        one = contexts.select(torch.tensor([row]))
        rows = generator.model.generate(
            encoder_outputs=BaseModelOutput(last_hidden_state=one.states),
            attention_mask=one.attention_mask,
            bad_words_ids=None,
            **options,
        )[:, 1:].tolist()
        cut = [next((i + 1 for i, label in enumerate(labels) if label in ends), len(labels)) for labels in rows]
        found.append([labels[:end] for labels, end in zip(rows, cut, strict=True)])
    return found


@pytest.mark.parametrize("beams", [2, 5])
@pytest.mark.parametrize("name", SEARCHES)
def test_what_transformers_finds(
    generator: Any, contexts: Any, name: str, beams: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All beams of all contexts, in their order, though contexts leave the search one after the other."""
    settings = SEARCHES[name]
    for key, value in settings.items():
        monkeypatch.setattr(generator.model.generation_config, key, value)
    lengths = {"min_length": 3, "max_length": LONGEST, "num_beams": beams, "num_return_sequences": beams}
    expected = _theirs(generator, contexts, {**lengths, **settings})
    decoding = Decoding(bad_words_ids=(), **lengths)
    assert generator.search(contexts, torch.zeros(GROUPS, 1), decoding) == expected
    assert len({len(rows[0]) for rows in expected}) > 1 or name == "long answers"


def test_a_context_that_is_done_leaves(generator: Any, contexts: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """The decoder sees fewer rows from token to token, and at first one for each context."""
    rows: list[int] = []
    forward = type(generator.model).forward

    def watched(model: Any, **options: Any) -> Any:
        rows.append(len(options["decoder_input_ids"]))
        return forward(model, **options)

    monkeypatch.setattr(type(generator.model), "forward", watched)
    found = generator.search(contexts, torch.zeros(GROUPS, 1), Decoding(4, max_length=LONGEST))
    assert rows[:2] == [GROUPS, 4 * GROUPS]
    assert rows[-1] < rows[1] and rows[1:] == sorted(rows[1:], reverse=True)
    assert len(rows) >= max(len(answers[0]) for answers in found)


def test_a_few_groups_at_a_time(generator: Any, contexts: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Passes over the vocabulary that are made group by group choose what passes over all choose."""
    prior = torch.tensor([[0.5, 0.3, 0.2], [0.1, 0.1, 0.8]]).log()
    decoding = Decoding(4, max_length=LONGEST, num_return_sequences=4)
    together = generator.search(contexts, prior, decoding)
    monkeypatch.setattr(module, "SCORES_IN_CACHE", 1)
    assert generator.search(contexts, prior, decoding) == together


def test_where_nothing_may_end_an_answer(generator: Any, contexts: Any) -> None:
    """Each word forbidden: an answer of what is least forbidden, and no crash."""
    every = tuple((label,) for label in range(generator.model.config.vocab_size))
    found = generator.search(contexts, torch.zeros(GROUPS, 1), Decoding(2, max_length=4, bad_words_ids=every))
    assert [len(rows) for rows in found] == [1] * GROUPS


@pytest.mark.parametrize("more", [0, 1, 100, module.BLOCK - 1])
@pytest.mark.parametrize("blocks", [0, 3, 4, 50])
def test_the_highest_are_those_of_topk(blocks: int, more: int) -> None:
    """Numbers are all different; some are forbidden."""
    generator = torch.Generator().manual_seed(blocks + more)
    size = blocks * module.BLOCK + more + 3
    numbers = torch.stack([torch.randperm(size, generator=generator).float() for _ in range(40)])
    numbers[:20, : size // 2] = -torch.inf
    expected = numbers.topk(3)
    found, places = module._highest(numbers, 3)
    assert torch.equal(found, expected.values)
    assert torch.equal(places[found > -torch.inf], expected.indices[found > -torch.inf])


@pytest.mark.parametrize(("bias", "expected"), [(0.0, torch.bfloat16), (4.0, torch.float32)])
def test_zeros_are_not_added_to_scores(bias: float, expected: torch.dtype) -> None:
    """The scores stay where they are, in the type that was computed in; the model gets its bias back in any case."""
    config = BartConfig(vocab_size=40, max_position_embeddings=32, decoder_start_token_id=2, **FAIRSEQ_IDS, **SMALL)
    model: Any = BartForConditionalGeneration(config).eval()
    model.final_logits_bias[0, 7] = bias
    own = model.final_logits_bias
    ids = torch.tensor([[3, 4]])
    given: list[torch.Tensor] = []
    model.lm_head.register_forward_hook(lambda _, __, scores: given.append(scores))
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        plain = model(input_ids=ids, decoder_input_ids=ids).logits
        with pytest.raises(ZeroDivisionError), without_zero_bias(model):
            found = model(input_ids=ids, decoder_input_ids=ids).logits
            raise ZeroDivisionError
    assert found.dtype == expected
    assert (found is given[1]) == (bias == 0) and type(found) is torch.Tensor
    assert torch.equal(found.float(), plain.float())
    assert model.final_logits_bias is own and own.shape == (1, 40)


def test_nor_are_they_under_adapters() -> None:
    config = BartConfig(vocab_size=40, max_position_embeddings=32, decoder_start_token_id=2, **FAIRSEQ_IDS, **SMALL)
    base: Any = BartForConditionalGeneration(config).eval()
    own, ids = base.final_logits_bias, torch.tensor([[3, 4]])
    model = add_adapters(base, LoraSettings(r=2, alpha=4))
    given: list[torch.Tensor] = []
    base.lm_head.register_forward_hook(lambda _, __, scores: given.append(scores))
    with torch.no_grad(), without_zero_bias(model):
        assert model(input_ids=ids, decoder_input_ids=ids).logits is given[0]
    assert base.final_logits_bias is own and "final_logits_bias" not in vars(model)
