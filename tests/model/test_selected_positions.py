"""The layer over the vocabulary, where it is wanted alone."""

from __future__ import annotations

import pytest
import torch

from ragstone.model.selected_positions import only_at


@pytest.mark.parametrize("wanted", [0, 5, 16, 21])
def test_in_bfloat16_it_maps_few_numbers_of_states(wanted: int) -> None:
    """And gives the scores and gradients of those that are wanted."""
    torch.manual_seed(0)
    layer = torch.nn.Linear(8, 30, bias=False)
    states = torch.randn(3, 7, 8, requires_grad=True)
    positions = torch.zeros(21, dtype=torch.bool)
    positions[torch.randperm(21)[:wanted]] = True
    positions = positions.view(3, 7)
    mapped: list[int] = []
    layer.register_forward_hook(lambda _, arguments, __: mapped.append(arguments[0].shape[1]))
    with torch.autocast("cpu", torch.bfloat16), only_at(positions, layer):
        scores = layer(states)
    expected = layer(states)[positions]
    assert mapped == [-(-wanted // 16) * 16, 7]
    assert scores.shape == (1, wanted, 30)
    torch.testing.assert_close(scores[0].float(), expected, rtol=0.05, atol=0.05)
    (gradient,) = torch.autograd.grad(scores.float().square().sum(), states)
    (right,) = torch.autograd.grad(expected.square().sum(), states)
    torch.testing.assert_close(gradient, right, rtol=0.1, atol=0.1)
