"""Keys and values of cross-attention are made of tokens alone; what comes of them is the same as of all states."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import pytest
import torch

from ragstone.model import seq2seq
from ragstone.model.decoding import Decoding
from ragstone.model.open import checkpoint_gradients
from ragstone.model.seq2seq import Seq2SeqGenerator
from ragstone.model.without_padding import only_tokens
from tests.model.families import FAMILIES, open_family

CONTEXTS = [("a b", " c a b c b"), ("", "c"), ("a", " b")]
LABELS = torch.tensor([[[3, 4, 2]], [[4, 2, -100]], [[3, 3, 4]]])


@contextmanager
def rows_read(decoder: Any) -> Iterator[set[int]]:
    """Of how many states keys and values of cross-attention are made within the with-block."""
    found: set[int] = set()
    handles = [
        layer.register_forward_hook(lambda _, given, __: found.add(given[0].shape[:-1].numel()))
        for name, layer in decoder.named_modules()
        if name.endswith(("encoder_attn.k_proj", "encoder_attn.v_proj", "EncDecAttention.k", "EncDecAttention.v"))
    ]
    assert handles
    yield found
    for handle in handles:
        handle.remove()


@pytest.mark.parametrize("name", FAMILIES)
def test_every_family_gives_what_it_gives_of_all_states(
    name: str, family_folder: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    generator = open_family(name, family_folder(name))
    generator.model.double()
    weights = list(generator.model.parameters())
    contexts = generator.encode(CONTEXTS, 28)
    tokens, states = int(contexts.attention_mask.sum()), contexts.attention_mask.numel()
    assert tokens < states
    results = []
    for way, count in ((only_tokens, tokens), (lambda *_: nullcontext(), states)):
        monkeypatch.setattr(seq2seq, "only_tokens", way)
        contexts = generator.encode(CONTEXTS, 28)
        with rows_read(generator.model.get_decoder()) as rows:
            logits = generator.target_logits(contexts, LABELS)
        assert rows == {count}
        gradients = torch.autograd.grad(logits.square().sum(), weights, materialize_grads=True, allow_unused=True)
        with torch.no_grad():
            answers = generator.search(contexts, torch.zeros(3, 1), Decoding(num_beams=3, max_length=7))
        results.append((logits, gradients, answers))
    (logits, gradients, answers), (same_logits, same_gradients, same_answers) = results
    torch.testing.assert_close(logits, same_logits, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(gradients, same_gradients, rtol=1e-8, atol=1e-8)
    assert answers == same_answers


@pytest.fixture
def bart(family_folder: Callable[[str], Path]) -> Seq2SeqGenerator:
    return open_family("BART", family_folder("BART"))


@torch.no_grad()
def test_a_search_reads_the_tokens_once(bart: Seq2SeqGenerator) -> None:
    contexts = bart.encode(CONTEXTS, 28)
    with rows_read(bart.model.get_decoder()) as rows:
        bart.search(contexts, torch.zeros(3, 1), Decoding(num_beams=3, min_length=4, max_length=7))
    assert rows == {int(contexts.attention_mask.sum())}
    assert not any(layer._forward_hooks or layer._forward_pre_hooks for layer in bart.model.modules())


@torch.no_grad()
def test_all_states_are_read_where_that_takes_no_longer(bart: Seq2SeqGenerator) -> None:
    contexts = bart.encode(CONTEXTS, 28)
    with torch.autocast("cpu", dtype=torch.bfloat16), rows_read(bart.model.get_decoder()) as rows:
        bart.target_logits(contexts, LABELS)
    assert rows == {contexts.attention_mask.numel()}


def test_what_is_computed_again_on_the_way_back_is_given_all_states(bart: Seq2SeqGenerator) -> None:
    gradients = []
    for again in (False, True):
        if again:
            bart.model.train()
            checkpoint_gradients(bart.model)
        contexts = bart.encode(CONTEXTS, 28)
        with rows_read(bart.model.get_decoder()) as rows:
            logits = bart.target_logits(contexts, LABELS)
        assert (rows == {contexts.attention_mask.numel()}) is again
        gradients.append(torch.autograd.grad(logits.square().sum(), list(bart.model.parameters()), allow_unused=True))
    for one, other in zip(*gradients, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)
