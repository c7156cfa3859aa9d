"""The pure functions of marginalisation, as identities that hold for any numbers.

Shapes: B questions, N passages, T target tokens, V vocabulary.
"""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ragstone.model import marginal
from ragstone.model.marginal import (
    document_log_probs,
    entropy,
    marginal_logits,
    mean_log_probs,
    mean_marginal_log_probs,
    sequence_log_likelihood,
    sequence_posterior,
    shared_log_probs,
    target_log_probs,
    token_log_likelihood,
    token_posterior,
)

LIKELIHOODS = [sequence_log_likelihood, token_log_likelihood]
EXACT = {"rtol": 1e-5, "atol": 1e-5}


@st.composite
def readings(draw: st.DrawFn, tokens: int | None = None) -> tuple[torch.Tensor, torch.Tensor]:
    """Token log-probabilities [B, N, T] and document log-probabilities [B, N] of any size."""
    b, n = draw(st.integers(1, 3)), draw(st.integers(1, 4))
    t = tokens or draw(st.integers(1, 5))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**31)))
    spread = draw(st.floats(0.1, 30))
    token_log_probs = -spread * torch.rand(b, n, t, generator=generator)
    return token_log_probs, (spread * torch.randn(b, n, generator=generator)).log_softmax(dim=1)


@given(readings())
@settings(deadline=None)
def test_sums_written_out(reading: tuple[torch.Tensor, torch.Tensor]) -> None:
    token_log_probs, prior = reading
    for b in range(len(prior)):
        p, weights = token_log_probs[b].double().exp(), prior[b].double().exp()
        sequence = sum(weights[z] * math.prod(p[z].tolist()) for z in range(len(weights)))
        token = math.prod(sum((weights[z] * p[z, i]).item() for z in range(len(weights))) for i in range(p.shape[1]))
        assert sequence_log_likelihood(*reading)[b].item() == pytest.approx(math.log(sequence), rel=1e-4, abs=1e-4)
        assert token_log_likelihood(*reading)[b].item() == pytest.approx(math.log(token), rel=1e-4, abs=1e-4)


@given(readings(tokens=1))
@settings(deadline=None)
def test_one_token_targets_are_the_same_for_both(reading: tuple[torch.Tensor, torch.Tensor]) -> None:
    torch.testing.assert_close(sequence_log_likelihood(*reading), token_log_likelihood(*reading), **EXACT)
    torch.testing.assert_close(sequence_posterior(*reading), token_posterior(*reading)[:, :, 0], **EXACT)
    assert (sequence_log_likelihood(*reading) < 1e-6).all()


@given(readings(), st.integers(1, 3))
@settings(deadline=None)
def test_padding_adds_nothing(reading: tuple[torch.Tensor, torch.Tensor], width: int) -> None:
    token_log_probs, prior = reading
    padded = torch.cat([token_log_probs, torch.zeros(*prior.shape, width)], dim=2)
    for likelihood in LIKELIHOODS:
        torch.testing.assert_close(likelihood(padded, prior), likelihood(token_log_probs, prior), **EXACT)
    torch.testing.assert_close(sequence_posterior(padded, prior), sequence_posterior(token_log_probs, prior), **EXACT)
    torch.testing.assert_close(token_posterior(padded, prior)[:, :, -1], prior.exp(), **EXACT)


@given(readings(), st.floats(-50, 0))
@settings(deadline=None)
def test_masked_passages_add_nothing(reading: tuple[torch.Tensor, torch.Tensor], says: float) -> None:
    """Whatever a masked passage says of the answer, even that it is certain."""
    token_log_probs, prior = reading
    more = torch.cat([token_log_probs, torch.full((len(prior), 2, token_log_probs.shape[2]), says)], dim=1)
    masked = torch.cat([prior, torch.full((len(prior), 2), -torch.inf)], dim=1)
    for likelihood in LIKELIHOODS:
        torch.testing.assert_close(likelihood(more, masked), likelihood(token_log_probs, prior), **EXACT)
    assert (sequence_posterior(more, masked)[:, -2:] == 0).all()
    assert (token_posterior(more, masked)[:, -2:] == 0).all()


@given(readings())
@settings(deadline=None)
def test_posteriors_are_distributions(reading: tuple[torch.Tensor, torch.Tensor]) -> None:
    ones = torch.ones(len(reading[1]))
    torch.testing.assert_close(sequence_posterior(*reading).sum(dim=1), ones, **EXACT)
    per_token = token_posterior(*reading).sum(dim=1)
    torch.testing.assert_close(per_token, torch.ones_like(per_token), **EXACT)


@given(readings())
@settings(deadline=None)
def test_the_token_marginal_is_between_the_best_and_the_worst_passage(
    reading: tuple[torch.Tensor, torch.Tensor],
) -> None:
    token_log_probs, _ = reading
    likelihood = token_log_likelihood(*reading)
    assert (likelihood <= token_log_probs.max(dim=1).values.sum(dim=1) + 1e-4).all()
    assert (likelihood >= token_log_probs.min(dim=1).values.sum(dim=1) - 1e-4).all()


def test_one_passage_is_the_generator_alone() -> None:
    token_log_probs = -torch.rand(4, 1, 6)
    prior = document_log_probs(torch.randn(4, 1), torch.ones(4, 1, dtype=torch.bool))
    for likelihood in LIKELIHOODS:
        torch.testing.assert_close(likelihood(token_log_probs, prior), token_log_probs.sum(dim=2)[:, 0])
    torch.testing.assert_close(sequence_posterior(token_log_probs, prior), torch.ones(4, 1))
    torch.testing.assert_close(entropy(prior), torch.zeros(4))


@pytest.mark.parametrize("precision", [torch.float16, torch.bfloat16])
def test_half_precision_is_summed_in_float32(precision: torch.dtype) -> None:
    """The sum over 1000 tokens of log-probability -3.125 is no number of half precision."""
    token_log_probs = torch.full((1, 2, 1000), -3.125, dtype=precision)
    prior = torch.tensor([[0.25, 0.75]]).log()
    for likelihood in LIKELIHOODS:
        found = likelihood(token_log_probs, prior)
        assert found.dtype == torch.float32
        torch.testing.assert_close(found, torch.tensor([-3125.0]))
    posterior = sequence_posterior(token_log_probs, prior)
    assert posterior.dtype == torch.float32
    torch.testing.assert_close(posterior, prior.exp(), rtol=0, atol=1e-3)


@pytest.mark.parametrize("precision", [torch.float64, torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("at_once", [1, 21, 2**20])
def test_target_log_probs(precision: torch.dtype, at_once: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(marginal, "AT_ONCE", at_once)
    logits = (4 * torch.randn(3, 4, 7)).to(precision)
    labels = torch.tensor([[1, 2, 3, 4], [6, -100, -100, -100], [-100, 5, -100, 0]])
    valid = labels != -100
    found = target_log_probs(logits[valid], labels)
    everything = logits.float().log_softmax(dim=-1)
    expected = everything.gather(2, labels.clamp(min=0).unsqueeze(2)).squeeze(2).masked_fill(~valid, 0.0)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, expected)
    torch.testing.assert_close(mean_log_probs(logits[valid], labels), everything.mean(2).masked_fill(~valid, 0.0))
    # Each row shared by two labels.
    rows = torch.arange(int(valid.sum())).repeat_interleave(2)
    twice = labels.repeat_interleave(2, dim=1)
    torch.testing.assert_close(shared_log_probs(logits[valid], twice, rows), expected.repeat_interleave(2, dim=1))


@pytest.mark.parametrize("precision", [torch.float64, torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("at_once", [1, 21, 2**20])
def test_the_gradient_of_target_log_probs(
    precision: torch.dtype, at_once: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(marginal, "AT_ONCE", at_once)
    logits = (4 * torch.randn(5, 7)).to(precision).requires_grad_()
    labels = torch.tensor([[1, -100, 6], [3, 0, 1]])
    weights = torch.randn(2, 3)
    (found,) = torch.autograd.grad((target_log_probs(logits, labels) * weights).sum(), logits)
    chosen = logits.float().log_softmax(dim=1).gather(1, labels[labels != -100].unsqueeze(1)).squeeze(1)
    (expected,) = torch.autograd.grad((chosen * weights[labels != -100]).sum(), logits)
    assert found.dtype == precision
    # In float32 at most, whatever they are given in.
    tolerance = EXACT if precision == torch.float64 else {}
    torch.testing.assert_close(found, expected, **tolerance)


def test_scores_so_far_apart_that_their_exponentials_overflow() -> None:
    logits = torch.tensor([[1e30, 0.0, -1e30], [-torch.inf, 2.0, 2.0]], requires_grad=True)
    found = target_log_probs(logits, torch.tensor([0, 2]))
    torch.testing.assert_close(found, torch.tensor([0.0, -math.log(2)]))
    found.sum().backward()
    assert logits.grad is not None
    torch.testing.assert_close(logits.grad, torch.tensor([[0.0, 0.0, 0.0], [0.0, -0.5, 0.5]]))


def test_gradients_reach_logits_and_scores() -> None:
    logits = torch.randn(4, 5, requires_grad=True)
    scores = torch.randn(1, 2, requires_grad=True)
    labels = torch.tensor([[[1, 2, -100]]]).expand(1, 2, 3)
    prior = document_log_probs(scores, torch.ones(1, 2, dtype=torch.bool))
    sequence_log_likelihood(target_log_probs(logits, labels), prior).sum().backward()
    assert logits.grad is not None and scores.grad is not None
    assert (logits.grad.abs().sum(dim=1) > 0).all()
    # Raising every score alike changes nothing.
    assert scores.grad.sum().item() == pytest.approx(0, abs=1e-6)
    assert scores.grad.abs().sum() > 0


def test_document_log_probs() -> None:
    scores = torch.tensor([[1.0, 2.0, 3.0], [1.0, 2.0, 9.0], [4.0, 5.0, 6.0]])
    mask = torch.tensor([[True, True, True], [True, True, False], [False, False, False]])
    prior = document_log_probs(scores, mask).exp()
    torch.testing.assert_close(prior[0], scores[0].softmax(dim=0))
    torch.testing.assert_close(prior[1], torch.tensor([*scores[1, :2].softmax(dim=0), 0.0]))
    torch.testing.assert_close(prior[2], torch.tensor([1.0, 0.0, 0.0]))


def test_a_score_of_any_size_gives_a_distribution() -> None:
    prior = document_log_probs(torch.tensor([[6e4, -6e4, 0.0]]).half(), torch.ones(1, 3, dtype=torch.bool))
    torch.testing.assert_close(prior.exp(), torch.tensor([[1.0, 0.0, 0.0]]))
    assert entropy(prior).item() == 0


def test_no_gradient_of_a_masked_score_is_nan() -> None:
    scores = torch.tensor([[1.0, 2.0], [3.0, 4.0]], requires_grad=True)
    prior = document_log_probs(scores, torch.tensor([[True, False], [False, False]]))
    (
        sequence_log_likelihood(-torch.rand(2, 2, 3), prior) + token_log_likelihood(-torch.rand(2, 2, 3), prior)
    ).sum().backward()
    assert scores.grad is not None
    assert torch.equal(scores.grad, torch.zeros(2, 2))


def test_marginal_logits_are_log_probabilities() -> None:
    logits = torch.randn(2, 3, 4, 5)
    prior = document_log_probs(torch.randn(2, 3), torch.tensor([[True, True, True], [True, False, True]]))
    found = marginal_logits(logits, prior)
    expected = torch.einsum("bn,bntv->btv", prior.exp(), logits.softmax(dim=-1)).log()
    torch.testing.assert_close(found, expected)
    torch.testing.assert_close(found.exp().sum(dim=-1), torch.ones(2, 4))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_marginal_logits_are_the_same_with_and_without_gradients(dtype: torch.dtype) -> None:
    """Without, a token is done after the other; one question has a passage that is missing."""
    logits = torch.randn(3, 4, 5, 50).to(dtype)
    mask = torch.tensor([[True] * 4, [True, False, True, True], [True] * 4])
    prior = document_log_probs(torch.randn(3, 4), mask)
    at_once = marginal_logits(logits.clone().requires_grad_(), prior)
    assert at_once.requires_grad
    torch.testing.assert_close(marginal_logits(logits, prior), at_once.detach(), rtol=1e-6, atol=1e-6)


def test_the_mean_over_the_vocabulary_of_the_marginal() -> None:
    logits, prior = torch.randn(2, 3, 4, 5), document_log_probs(torch.randn(2, 3), torch.ones(2, 3, dtype=torch.bool))
    labels = torch.tensor([[1, 2, -100, -100], [0, 1, 2, 3]])
    valid = labels != -100
    selected = logits[valid.unsqueeze(1).expand(-1, 3, -1)]
    expected = marginal_logits(logits, prior).mean(dim=-1).masked_fill(~valid, 0.0)
    torch.testing.assert_close(mean_marginal_log_probs(selected, prior, labels), expected)


def test_entropy() -> None:
    uniform = torch.full((1, 4), 0.25).log()
    torch.testing.assert_close(entropy(uniform), torch.tensor([math.log(4)]))
    torch.testing.assert_close(entropy(torch.tensor([[0.5, 0.5, 0.0]]).log()), torch.tensor([math.log(2)]))
