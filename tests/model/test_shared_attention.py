"""Several answers read from one context give what each gives with a copy of the context."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForSeq2SeqLM, AutoTokenizer

from ragstone.model.decoding import Decoding
from ragstone.model.runs import runs_of_like_length
from ragstone.model.seq2seq import Seq2SeqGenerator
from ragstone.model.shared_attention import NAME
from tests.model.families import FAMILIES, open_family

CONTEXTS = [
    ("town / the river of the old town is blue", " // who founded it ?"),
    ("", "who ?"),
    ("hill / a red", " // ?"),
]


@pytest.fixture(params=["bart", "t5"])
def opened(request: pytest.FixtureRequest, models_folder: Path, t5_folder: Path) -> Callable[[str], Seq2SeqGenerator]:
    folder = {"bart": models_folder / "generator", "t5": t5_folder}[request.param]

    def opener(attention: str) -> Seq2SeqGenerator:
        model = AutoModelForSeq2SeqLM.from_pretrained(folder, attn_implementation=attention).eval().double()
        return Seq2SeqGenerator(model, AutoTokenizer.from_pretrained(folder))

    return opener


def test_answers_share_a_context(opened: Callable[[str], Seq2SeqGenerator]) -> None:
    """Shared, with a copy each (eager attention cannot share), and one by one: the same scores and gradients."""
    shared, copied = opened("sdpa"), opened("eager")
    assert (shared.model.config._attn_implementation, copied.model.config._attn_implementation) == (NAME, "eager")
    labels = torch.randint(4, 12, (3, 4, 5))
    labels[0, 0, 3:] = labels[1, 2, 1:] = labels[2, 3] = -100
    found = []
    for generator in (shared, copied):
        logits = generator.target_logits(generator.encode(CONTEXTS, 300), labels)
        logits.square().sum().backward()
        found.append((logits, [parameter.grad for parameter in generator.model.parameters()]))
    torch.testing.assert_close(found[0][0], found[1][0], rtol=1e-8, atol=1e-8)
    torch.testing.assert_close(found[0][1], found[1][1], rtol=1e-8, atol=1e-8)
    alone = []
    for row, context in enumerate(CONTEXTS):
        for answer in labels[row]:
            contexts = shared.encode([context], 300)
            alone.append(shared.target_logits(contexts, answer[None, None]) if (answer != -100).any() else None)
    torch.testing.assert_close(found[0][0], torch.cat([x for x in alone if x is not None]), rtol=1e-8, atol=1e-8)


@pytest.mark.parametrize("n", [1, 3])
def test_beams_share_a_context(opened: Callable[[str], Seq2SeqGenerator], n: int) -> None:
    decoding = Decoding(num_beams=4, num_return_sequences=4, max_length=9)
    weights = torch.tensor([[0.2, 0.5, 0.3]]).log() if n == 3 else torch.zeros(3, 1)
    shared, copied = (
        generator.search(generator.encode(CONTEXTS, 300), weights, decoding)
        for generator in (opened("sdpa"), opened("eager"))
    )
    assert shared == copied


def test_contexts_of_like_length_are_encoded_together(
    opened: Callable[[str], Seq2SeqGenerator], monkeypatch: pytest.MonkeyPatch
) -> None:
    """In whatever runs, every context stays in its row."""
    generator = opened("sdpa")
    expected = generator.encode(CONTEXTS, 300)
    monkeypatch.setattr("ragstone.model.runs.CPU_TOKENS_AT_ONCE", 8)
    calls: list[Any] = []
    generator.model.get_encoder().register_forward_pre_hook(lambda *_: calls.append(1))
    found = generator.encode(CONTEXTS, 300)
    assert len(calls) == 3
    assert torch.equal(found.attention_mask, expected.attention_mask)
    for row, length in enumerate(expected.attention_mask.sum(dim=1)):
        torch.testing.assert_close(found.states[row, :length], expected.states[row, :length])


def test_runs() -> None:
    assert runs_of_like_length([3, 1, 20, 2, 9, 2], 8) == [[2], [4], [0, 3], [5, 1]]
    assert runs_of_like_length([4, 4, 4], 12) == [[0, 1, 2]]
    assert runs_of_like_length([], 12) == []


def test_padding_to_few_lengths_changes_nothing(
    opened: Callable[[str], Seq2SeqGenerator], monkeypatch: pytest.MonkeyPatch
) -> None:
    generator = opened("sdpa")
    labels = torch.randint(4, 12, (3, 2, 5))
    labels[0, 0, 3:] = labels[2, 1] = -100
    found, lengths = [], []
    generator.model.get_encoder().register_forward_pre_hook(
        lambda _, arguments, options: lengths.append(options["input_ids"].shape[1]), with_kwargs=True
    )
    for step in (1, 7):
        monkeypatch.setattr("ragstone.model.seq2seq.padded_length", lambda n, *_, step=step: -(-n // step) * step)
        contexts = generator.encode(CONTEXTS, 300)
        logits = generator.target_logits(contexts, labels)
        logits.square().sum().backward()
        answers = generator.search(contexts, torch.zeros(3, 1), Decoding(num_beams=2, num_return_sequences=2))
        found.append((logits, [parameter.grad for parameter in generator.model.parameters()], answers))
        generator.model.zero_grad()
    assert lengths[0] < lengths[1] and lengths[1] % 7 == 0
    torch.testing.assert_close(found[0][:2], found[1][:2], rtol=1e-8, atol=1e-8)
    assert found[0][2] == found[1][2]


@pytest.mark.parametrize("name", FAMILIES)
def test_which_families_share(name: str, family_folder: Callable[[str], Path]) -> None:
    """What they give is held against brute force either way (test_families.py)."""
    generator = open_family(name, family_folder(name))
    assert generator._shares_contexts is (name not in ("LED", "umT5"))
    assert (generator.model.config._attn_implementation == NAME) is generator._shares_contexts
