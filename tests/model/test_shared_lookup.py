"""Token embeddings of several passes, looked up once: equal vectors and gradients, one gradient of the whole table."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from ragstone.model.shared_lookup import looked_up_once
from tests.model.families import FAMILIES, open_family

PASSES = [torch.tensor([[3, 1, 4], [1, 5, 0]]), torch.tensor([[4, 4]])]
CONTEXTS = [("cat", "sat on the mat"), ("dog", "ran"), ("owl", "saw the cat and the dog and the mat")]


def lookups(result: torch.Tensor, weight: torch.Tensor) -> int:
    """How many lookups in `weight` the way back from `result` goes through."""
    found, waiting, seen = 0, [result.grad_fn], set()
    while waiting:
        node: Any = waiting.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        following = [each for each, _ in node.next_functions]
        of_weight = any(getattr(each, "variable", None) is weight for each in following)
        found += of_weight and node.name() == "EmbeddingBackward0"
        waiting += following
    return found


@pytest.mark.parametrize("padding", [None, 0])
def test_vectors_and_gradients_are_those_of_separate_lookups(padding: int | None) -> None:
    separate = torch.nn.Embedding(8, 2, padding_idx=padding, dtype=torch.float64)
    once = torch.nn.Embedding(8, 2, padding_idx=padding, dtype=torch.float64)
    once.load_state_dict(separate.state_dict())
    expected = [separate(ids) for ids in PASSES]
    with looked_up_once(torch.arange(6), once):
        found = [once(ids) for ids in PASSES]
    for one, other in zip(expected, found, strict=True):
        assert torch.equal(one, other)
    results = [sum((vectors**2).sum() for vectors in each) for each in (expected, found)]
    assert [lookups(results[0], separate.weight), lookups(results[1], once.weight)] == [2, 1]
    for result in results:
        result.backward()
    torch.testing.assert_close(once.weight.grad, separate.weight.grad)
    assert not once._forward_hooks


@pytest.mark.parametrize("name", FAMILIES)
def test_every_family_encodes_in_runs_with_one_lookup(
    name: str, family_folder: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """States and gradients are those of contexts that are encoded one by one."""
    generator = open_family(name, family_folder(name))
    generator.model.eval()
    encoder = generator.model.get_encoder()
    weight = encoder.get_input_embeddings().weight
    monkeypatch.setattr("ragstone.model.runs.CPU_TOKENS_AT_ONCE", 1)
    together = generator.encode(CONTEXTS, 60)
    alone = [generator.encode([context], 60) for context in CONTEXTS]
    assert lookups(together.states, weight) == 1
    gradients = []
    for encoded in ([together], alone):
        texts = [
            states[: int(mask.sum())]
            for each in encoded
            for states, mask in zip(each.states, each.attention_mask, strict=True)
        ]
        (gradient,) = torch.autograd.grad(sum((text**2).sum() for text in texts), weight)
        gradients.append((texts, gradient))
    torch.testing.assert_close(*gradients, rtol=1e-4, atol=1e-5)
