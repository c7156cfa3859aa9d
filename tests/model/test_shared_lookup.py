"""A table of token embeddings that several readers share: equal vectors and gradients, and one gradient of it all."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from ragstone.model import shared_lookup
from ragstone.model.shared_lookup import SharedTable
from tests.model import test_causal as causal
from tests.model.families import FAMILIES, open_family

PASSES = [torch.tensor([[3, 1, 4], [1, 5, 0]]), torch.tensor([[4, 4]])]
CONTEXTS = [("a b", " c a b c b"), ("", "c"), ("a", " b")]
LABELS = torch.tensor([[[3, 4, 2]], [[4, 2, -100]], [[3, 3, 4]]])


def readers(result: torch.Tensor, weight: torch.Tensor) -> Counter[str]:
    """What hands `weight` a gradient of its size on the way back from `result`."""
    found: Counter[str] = Counter()
    waiting, seen = [result.grad_fn], set()
    while waiting:
        node: Any = waiting.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        following = [each for each, _ in node.next_functions]
        found[node.name()] += sum(getattr(each, "variable", None) is weight for each in following)
        waiting += following
    return +found


def gradients_of(result: torch.Tensor, model: Any) -> tuple[torch.Tensor, ...]:
    weights = list(model.parameters())
    return torch.autograd.grad(result.square().sum(), weights, materialize_grads=True, allow_unused=True)


@pytest.fixture
def nothing_shared(monkeypatch: pytest.MonkeyPatch) -> Callable[[], None]:
    return lambda: monkeypatch.setattr(shared_lookup, "_is_plain", lambda embedding: False)


@pytest.mark.parametrize("padding", [None, 0, 5])
def test_vectors_and_gradients_are_those_of_separate_lookups(padding: int | None) -> None:
    separate = torch.nn.Embedding(8, 2, padding_idx=padding, dtype=torch.float64)
    once = torch.nn.Embedding(8, 2, padding_idx=padding, dtype=torch.float64)
    once.load_state_dict(separate.state_dict())
    expected = [separate(ids) for ids in PASSES]
    with SharedTable(once).looked_up_once(torch.arange(6), once):
        found = [once(ids) for ids in PASSES]
    for one, other in zip(expected, found, strict=True):
        assert torch.equal(one, other)
    results = [sum((vectors**2).sum() for vectors in each) for each in (expected, found)]
    assert readers(results[0], separate.weight) == {"EmbeddingBackward0": 2}
    assert readers(results[1], once.weight) == {"_RowsBackward": 1}
    for result in results:
        result.backward()
    torch.testing.assert_close(once.weight.grad, separate.weight.grad)
    assert not once._forward_hooks
    assert once.padding_idx == padding


@pytest.mark.parametrize("read", [0, 1, 2, (0, 1), (0, 2), (1, 2), (0, 1, 2)])
def test_any_of_the_readers_may_be_without_gradient(read: Any) -> None:
    """Of two lookups and a layer over the vocabulary."""
    results = []
    for shares in (True, False):
        torch.manual_seed(1)
        embedding = torch.nn.Embedding(8, 4, padding_idx=0, dtype=torch.float64)
        layer = torch.nn.Linear(4, 8, bias=False, dtype=torch.float64)
        layer.weight = embedding.weight
        model = torch.nn.Sequential(torch.nn.Identity(), layer)
        table = SharedTable(embedding)
        vectors = []
        for ids in PASSES:
            if shares:
                with table.looked_up_once(ids, embedding):
                    vectors.append(embedding(ids))
            else:
                vectors.append(embedding(ids))
        given = torch.ones(1, 4, dtype=torch.float64)
        outputs = [*vectors, table.call(model, layer, input=given) if shares else model(given)]
        total = sum((number + 2) * outputs[number].square().sum() for number in torch.tensor(read).flatten().tolist())
        assert isinstance(total, torch.Tensor)
        assert readers(total, embedding.weight) == {"_RowsBackward": 1} or not shares
        total.backward()
        results.append(embedding.weight.grad)
        assert layer.weight is embedding.weight
    torch.testing.assert_close(*results)


class Marked(torch.nn.Embedding):
    """Gives one token a vector that is not in its table."""

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        return super().forward(ids).masked_fill((ids == 4).unsqueeze(-1), 7)


@pytest.mark.parametrize(("embedding", "known"), [(Marked(8, 2), 6), (torch.nn.Embedding(8, 2), 3)])
def test_vectors_from_elsewhere_and_unforeseen_tokens(embedding: torch.nn.Embedding, known: int) -> None:
    expected = [embedding(ids) for ids in PASSES]
    with SharedTable(embedding).looked_up_once(torch.arange(known), embedding):
        found = [embedding(ids) for ids in PASSES]
    gradients = []
    for each in (expected, found):
        (gradient,) = torch.autograd.grad(sum((vectors**2).sum() for vectors in each), embedding.weight)
        gradients.append((each, gradient))
    torch.testing.assert_close(*gradients)


def test_contexts_may_be_read_again(family_folder: Callable[[str], Path]) -> None:
    generator = open_family("BART", family_folder("BART"))
    with torch.no_grad():
        contexts = generator.encode(CONTEXTS, 28)
    first, again = (gradients_of(generator.target_logits(contexts, LABELS), generator.model) for _ in range(2))
    torch.testing.assert_close(first, again)


def test_autocast_converts_a_table_once_for_all_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    """As it does with a weight, which it keeps; conversions on the way back are seen there."""
    generator = causal.make("GPT-2")
    generator.model.float()
    weight = generator.model.get_input_embeddings().weight
    assert generator.model.get_output_embeddings().weight is weight
    monkeypatch.setattr("ragstone.model.runs.CPU_TOKENS_AT_ONCE", 1)
    labels = torch.tensor([[[1, 2, 0]]] * len(causal.CONTEXTS))
    with torch.autocast("cpu", torch.bfloat16):
        logits = generator.target_logits(generator.encode(causal.CONTEXTS, 28), labels)
    nodes, waiting = {logits.grad_fn}, [logits.grad_fn]
    while waiting:
        following = {node for node, _ in waiting.pop().next_functions if node is not None} - nodes
        nodes |= following
        waiting += following
    onto_table = [
        node for node in nodes if any(each.name() == "_RowsBackward" for each, _ in node.next_functions if each)
    ]
    assert [node.name() for node in onto_table].count("ToCopyBackward0") == 1


@pytest.mark.parametrize("name", FAMILIES)
def test_every_family_trains_with_one_gradient_of_its_table(
    name: str, family_folder: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch, nothing_shared: Callable[[], None]
) -> None:
    """Contexts in several runs, the decoder, and the vocabulary where it is the same table."""
    generator = open_family(name, family_folder(name))
    model = generator.model.double()
    table = model.get_encoder().get_input_embeddings().weight
    assert model.get_decoder().get_input_embeddings().weight is table
    monkeypatch.setattr("ragstone.model.runs.CPU_TOKENS_AT_ONCE", 1)
    results = []
    for shares in (True, False):
        if not shares:
            nothing_shared()
        logits = generator.target_logits(generator.encode(CONTEXTS, 28), LABELS)
        assert (readers(logits, table) == {"_RowsBackward": 1}) is shares
        results.append((logits, gradients_of(logits, model)))
    torch.testing.assert_close(*results, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("name", causal.FAMILIES)
def test_every_decoder_trains_with_one_gradient_of_its_table(
    name: str, monkeypatch: pytest.MonkeyPatch, nothing_shared: Callable[[], None]
) -> None:
    generator = causal.make(name)
    table = generator.model.get_input_embeddings().weight
    monkeypatch.setattr("ragstone.model.runs.CPU_TOKENS_AT_ONCE", 1)
    labels = torch.tensor([[[1, 2, 0]], [[2, 0, -100]], [[1, 1, 3]], [[3, 0, -100]], [[1, 2, 3]], [[2, 2, 0]]])
    results = []
    for shares in (True, False):
        if not shares:
            nothing_shared()
        logits = generator.target_logits(generator.encode(causal.CONTEXTS, 28), labels)
        assert (readers(logits, table) == {"_RowsBackward": 1}) is shares
        results.append((logits, gradients_of(logits, generator.model)))
    torch.testing.assert_close(*results, rtol=1e-5, atol=1e-5)
