"""Pooling against results worked out by hand."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch

from ragstone.encoders.pooling import POOLINGS, Pooling, pool

STATES = torch.tensor(
    [
        [[1.0, 2.0], [3.0, 4.0], [5.0, 9.0]],
        [[2.0, 0.0], [4.0, 8.0], [100.0, 100.0]],
    ]
)
POOLED = torch.tensor([[7.0, 7.0], [8.0, 8.0]])
RIGHT_PADDED = torch.tensor([[1, 1, 1], [1, 1, 0]])
LEFT_PADDED = torch.tensor([[1, 1, 1], [0, 1, 1]])


@pytest.mark.parametrize(
    ("pooling", "mask", "expected"),
    [
        ("pooler", RIGHT_PADDED, [[7.0, 7.0], [8.0, 8.0]]),
        ("cls", RIGHT_PADDED, [[1.0, 2.0], [2.0, 0.0]]),
        ("mean", RIGHT_PADDED, [[3.0, 5.0], [3.0, 4.0]]),
        ("mean", LEFT_PADDED, [[3.0, 5.0], [52.0, 54.0]]),
        ("last", RIGHT_PADDED, [[5.0, 9.0], [4.0, 8.0]]),
        ("last", LEFT_PADDED, [[5.0, 9.0], [100.0, 100.0]]),
    ],
)
def test_by_hand(pooling: Pooling, mask: torch.Tensor, expected: list[list[float]]) -> None:
    output = SimpleNamespace(last_hidden_state=STATES, pooler_output=POOLED)
    assert pool(output, mask, pooling).tolist() == expected


@pytest.mark.parametrize("pooling", POOLINGS)
def test_padding_never_reaches_a_vector(pooling: Pooling) -> None:
    """What the model computes at padded places is noise, and so is its gradient."""
    states = STATES.clone().requires_grad_()
    vectors = pool(SimpleNamespace(last_hidden_state=states, pooler_output=POOLED), RIGHT_PADDED, pooling)
    if pooling != "pooler":
        vectors.sum().backward()
        assert states.grad is not None
        assert states.grad[1, 2].tolist() == [0.0, 0.0]
        assert states.grad.abs().sum() > 0
    assert vectors.shape == (2, 2)
