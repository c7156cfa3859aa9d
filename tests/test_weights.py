"""Hashes of weights: the same for the same numbers, another for any other."""

from __future__ import annotations

import pytest
import torch

from ragstone.weights import hash_weights

WEIGHTS = {"a": torch.arange(12.0).reshape(3, 4), "b": torch.tensor(1.5), "c": torch.zeros(0), "d": torch.tensor([7])}


def test_order_type_and_layout_do_not_count() -> None:
    same = {name: tensor.bfloat16().T if name == "a" else tensor for name, tensor in reversed(WEIGHTS.items())}
    assert hash_weights({**same, "a": same["a"].T}) == hash_weights(WEIGHTS)
    assert len(hash_weights(WEIGHTS)) == 32


@pytest.mark.parametrize(
    "other", [{"a": WEIGHTS["a"].T}, {"a": WEIGHTS["a"] + 1e-6}, {"b": torch.tensor(-1.5)}, {"e": WEIGHTS["c"]}]
)
def test_numbers_and_names_do(other: dict[str, torch.Tensor]) -> None:
    assert hash_weights(WEIGHTS | other) != hash_weights(WEIGHTS)


def test_so_does_what_stands_beside_them() -> None:
    assert len({hash_weights(WEIGHTS, *others) for others in ([], ["x"], ["x", 1], [["x", 1]])}) == 4
