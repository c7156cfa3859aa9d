"""DPR's objective by hand, and gradient caching against the whole batch."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from ragstone.training.contrastive import ContrastiveOutput, cached_backward, contrastive_loss, ranks_of

QUESTIONS = torch.tensor([[1.0, 0.0], [0.0, 2.0]])
PASSAGES = torch.tensor([[2.0, 1.0], [1.0, 1.0], [3.0, 0.0]])
"""Scores: [2, 1, 3] and [2, 2, 0]."""
TARGETS = torch.tensor([0, 1])


def test_loss_by_hand() -> None:
    output = contrastive_loss(QUESTIONS, PASSAGES, TARGETS)
    first = -2 + math.log(math.exp(2) + math.exp(1) + math.exp(3))
    second = -2 + math.log(math.exp(2) + math.exp(2) + math.exp(0))
    assert output.loss.item() == pytest.approx((first + second) / 2, rel=1e-6)
    assert output.ranks.tolist() == [2, 2], "a tie counts as the worse place"
    assert output.correct == 0


def test_excluded_passages_do_not_count() -> None:
    excluded = torch.tensor([[False, False, True], [True, False, False]])
    output = contrastive_loss(QUESTIONS, PASSAGES, TARGETS, excluded)
    first = -2 + math.log(math.exp(2) + math.exp(1))
    second = -2 + math.log(math.exp(2) + math.exp(0))
    assert output.loss.item() == pytest.approx((first + second) / 2, rel=1e-6)
    assert output.ranks.tolist() == [1, 1]
    assert output.correct == 2


def test_temperature_divides_the_scores() -> None:
    expected = contrastive_loss(QUESTIONS / 0.05, PASSAGES, TARGETS)
    output = contrastive_loss(QUESTIONS, PASSAGES, TARGETS, temperature=0.05)
    torch.testing.assert_close(output.loss, expected.loss)


def test_half_precision_vectors_are_scored_in_float32() -> None:
    """The scores are 256 and 257, and bf16 has no number between 256 and 258."""
    questions = torch.tensor([[16.0, 1.0]], dtype=torch.bfloat16)
    passages = torch.tensor([[16.0, 0.0], [16.0, 1.0]], dtype=torch.bfloat16)
    assert contrastive_loss(questions, passages, torch.tensor([1])).ranks.tolist() == [1]


def test_a_collapse_ranks_last() -> None:
    assert ranks_of(torch.zeros(2, 5), torch.tensor([0, 3])).tolist() == [5, 5]


class Encoder(nn.Module):
    """Enough of an encoder to have dropout and weights before and behind it."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(6, 16), nn.Tanh(), nn.Dropout(0.5), nn.Linear(16, 4))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.layers(x)


@pytest.fixture
def data() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    questions, passages = torch.randn(7, 6, generator=generator), torch.randn(12, 6, generator=generator)
    return questions, passages, torch.randperm(12, generator=generator)[:7]


def gradients(
    data: tuple[torch.Tensor, torch.Tensor, torch.Tensor], shared: bool, cached: bool, scale: float = 1.0
) -> tuple[list[torch.Tensor], ContrastiveOutput, torch.Tensor]:
    """Gradients of the weights, the output, and the next random number, with the same chunks either way."""
    torch.manual_seed(0)
    question_encoder, passage_encoder = Encoder(), Encoder()
    if shared:
        passage_encoder = question_encoder
    questions, passages, targets = data
    question_chunks = [lambda x=x: question_encoder(x) for x in questions.split(3)]
    passage_chunks = [lambda x=x: passage_encoder(x) for x in passages.split(5)]

    def loss_of(q: torch.Tensor, p: torch.Tensor) -> ContrastiveOutput:
        return contrastive_loss(q, p, targets)

    torch.manual_seed(1)
    if cached:
        output = cached_backward(question_chunks, passage_chunks, loss_of, lambda loss: scale * loss)
    else:
        output = loss_of(torch.cat([embed() for embed in question_chunks]), torch.cat([e() for e in passage_chunks]))
        (scale * output.loss).backward()
    encoders = nn.ModuleList([question_encoder, passage_encoder])
    return [parameter.grad for parameter in encoders.parameters()], output, torch.rand(1)


@pytest.mark.parametrize("shared", [False, True])
@pytest.mark.parametrize("scale", [1.0, 1024.0])
def test_cached_gradients_are_those_of_the_whole_batch(
    data: tuple[torch.Tensor, torch.Tensor, torch.Tensor], shared: bool, scale: float
) -> None:
    """With dropout on: the same units are dropped in both passes over a chunk."""
    expected, whole, after_whole = gradients(data, shared, cached=False, scale=scale)
    found, cached, after_cached = gradients(data, shared, cached=True, scale=scale)
    assert len(found) == (4 if shared else 8)
    for ours, theirs in zip(found, expected, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-7 * scale)
    torch.testing.assert_close(cached.loss, whole.loss.detach())
    assert cached.ranks.tolist() == whole.ranks.tolist()
    assert torch.equal(after_cached, after_whole), "caching must not change what is drawn later"


def test_gradients_add_up(data: tuple[torch.Tensor, torch.Tensor, torch.Tensor]) -> None:
    """A second call adds to the first one's gradients, as backward does."""
    encoder = Encoder().eval()
    questions, passages, targets = data
    chunks = [[lambda x=x: encoder(x) for x in texts.split(4)] for texts in (questions, passages)]
    cached_backward(*chunks, lambda q, p: contrastive_loss(q, p, targets))
    once = [parameter.grad.clone() for parameter in encoder.parameters()]
    cached_backward(*chunks, lambda q, p: contrastive_loss(q, p, targets))
    for parameter, single in zip(encoder.parameters(), once, strict=True):
        torch.testing.assert_close(parameter.grad, 2 * single)


def test_one_graph_at_a_time(data: tuple[torch.Tensor, torch.Tensor, torch.Tensor]) -> None:
    """What backward keeps of a chunk is freed before the next chunk's graph is made."""
    alive = peak = 0

    class Watched(torch.autograd.Function):
        @staticmethod
        def forward(ctx: object, x: torch.Tensor) -> torch.Tensor:
            return x.clone()

        @staticmethod
        def backward(ctx: object, gradient: torch.Tensor) -> torch.Tensor:
            nonlocal alive
            alive -= 1
            return gradient

    encoder = Encoder()

    def embed(x: torch.Tensor) -> torch.Tensor:
        nonlocal alive, peak
        vectors = encoder(x)
        if vectors.requires_grad:
            alive += 1
            peak = max(peak, alive)
        return Watched.apply(vectors)

    questions, passages, targets = data
    chunks = [[lambda x=x: embed(x) for x in texts.split(2)] for texts in (questions, passages)]
    cached_backward(*chunks, lambda q, p: contrastive_loss(q, p, targets))
    assert (alive, peak) == (0, 1)
