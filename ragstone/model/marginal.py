"""Marginalisation over retrieved passages: pure functions in float32.

Lewis et al. 2020 (arXiv 2005.11401), section 2.1. Shapes: B questions, N passages, T target tokens, V vocabulary.
x is the question, y the answer, z a passage.

A masked passage has document log-probability -inf and adds nothing, whatever its token log-probabilities are. N is
that of the tensors. Padded target positions (mask false) add nothing, and nothing depends on which position is first:
the prior enters once per sequence (RAG-Sequence) or once per token (RAG-Token).
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch.autograd.function import once_differentiable

IGNORED = -100
"""Label of a padded target position."""
AT_ONCE = 2**18
GPU_AT_ONCE = 2**26
"""Scores over the vocabulary that are looked at at once: they stay in a CPU's cache from one pass to the next, and what
is made of them on the way takes little memory."""


def document_log_probs(scores: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """log p(z|x) [B, N]: softmax of `scores` [B, N] over the passages where `mask` [B, N] is true.

    A question without any passage gives all to its first slot, whose passage is empty: the generator then answers from
    the question alone.
    """
    none = ~mask.any(dim=1, keepdim=True)
    first = torch.zeros_like(mask)
    first[:, 0] = True
    scores = scores.float().masked_fill(~mask, -torch.inf).masked_fill(none & first, 0.0)
    return scores.log_softmax(dim=1)


def target_log_probs(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """log p of each target token, in the shape of `labels`, 0 at padding.

    Args:
        logits: [M, V] in any precision, for the M labels that are no padding, in their order.
        labels: any shape, -100 at padding.
    """
    return _placed(_TargetLogProbs.apply(logits, labels[labels != IGNORED]), labels)


def shared_log_probs(logits: torch.Tensor, labels: torch.Tensor, rows: torch.Tensor) -> torch.Tensor:
    """As target_log_probs, for target tokens that share rows of `logits` [U, V]: `rows` [M] says which is whose.

    Without gradients.
    """
    highest, totals = _exponentials(logits)
    chosen = logits[rows, labels[labels != IGNORED]].float()
    return _placed(chosen - highest[rows] - totals.log()[rows], labels)


def mean_log_probs(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """log p averaged over the vocabulary at each target position: what label smoothing adds. See target_log_probs."""
    real = logits.float()
    return _placed(real.mean(dim=1) - real.logsumexp(dim=1), labels)


def mean_marginal_log_probs(logits: torch.Tensor, doc_log_probs: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """The marginal's log p averaged over the vocabulary at each target position [B, T], 0 at padding.

    Args:
        logits: [M, V] for those labels of B questions with each of N passages [B, N, T] that are no padding, in order.
        doc_log_probs: [B, N]
        labels: [B, T], -100 at padding.
    """
    valid = labels != IGNORED
    counts = valid.sum(dim=1).tolist()
    n = doc_log_probs.shape[1]
    means = []
    for rows, prior in zip(logits.split([n * count for count in counts]), doc_log_probs, strict=True):
        marginal = marginal_logits(rows.view(1, n, -1, rows.shape[-1]), prior.unsqueeze(0))
        means.append(marginal.squeeze(0).mean(dim=1))
    return _placed(torch.cat(means), labels)


class _TargetLogProbs(torch.autograd.Function):
    """log-softmax of logits [M, V] at one target [M] of each row, which alone is kept of it."""

    @staticmethod
    def forward(context: Any, logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        """[M] in float32."""
        highest, totals = _exponentials(logits)
        context.save_for_backward(logits, targets, highest, totals)
        return logits.gather(1, targets.unsqueeze(1)).squeeze(1).float() - highest - totals.log()

    @staticmethod
    @once_differentiable
    def backward(context: Any, gradient: torch.Tensor) -> tuple[torch.Tensor, None]:
        """That of a log-softmax at its target: one there, less the softmax."""
        logits, targets, highest, totals = context.saved_tensors
        found = torch.empty_like(logits)
        for rows in _blocks(logits):
            share = (gradient[rows] / totals[rows]).unsqueeze(1)
            block = (logits[rows].float() - highest[rows].unsqueeze(1)).exp_().mul_(-share)
            found[rows] = block.scatter_add_(1, targets[rows].unsqueeze(1), gradient[rows].unsqueeze(1))
        return found, None


@torch.no_grad()
def _exponentials(logits: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """The highest of each row of logits [M, V], and the sum of exponentials of what is below it, in float32 [M]."""
    highest, totals = torch.empty(2, len(logits), device=logits.device)
    for rows in _blocks(logits):
        block = logits[rows].float()
        highest[rows] = block.amax(dim=1)
        totals[rows] = (block - highest[rows].unsqueeze(1)).exp_().sum(dim=1)
    return highest, totals


def _blocks(logits: torch.Tensor) -> Iterator[slice]:
    """Rows of logits [M, V], some at a time."""
    each = max(1, (AT_ONCE if logits.device.type == "cpu" else GPU_AT_ONCE) // logits.shape[1])
    return (slice(first, first + each) for first in range(0, len(logits), each))


def _placed(values: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """`values` [M] where `labels` are no padding, 0 elsewhere."""
    return torch.zeros(labels.shape, device=values.device).masked_scatter(labels != IGNORED, values)


def sequence_log_likelihood(token_log_probs: torch.Tensor, doc_log_probs: torch.Tensor) -> torch.Tensor:
    """RAG-Sequence's log p(y|x) = log Σ_z p(z|x) Π_i p(y_i|x,z,y_<i).

    Args:
        token_log_probs: [B, N, T], 0 at padding.
        doc_log_probs: [B, N].

    Returns:
        [B]
    """
    return (doc_log_probs + token_log_probs.float().sum(dim=2)).logsumexp(dim=1)


def token_log_likelihood(token_log_probs: torch.Tensor, doc_log_probs: torch.Tensor) -> torch.Tensor:
    """RAG-Token's log p(y|x) = Σ_i log Σ_z p(z|x) p(y_i|x,z,y_<i).

    Args:
        token_log_probs: [B, N, T], 0 at padding (where the sum over z is then 1 and its logarithm 0).
        doc_log_probs: [B, N].

    Returns:
        [B]
    """
    return (doc_log_probs.unsqueeze(2) + token_log_probs.float()).logsumexp(dim=1).sum(dim=1)


def sequence_posterior(token_log_probs: torch.Tensor, doc_log_probs: torch.Tensor) -> torch.Tensor:
    """RAG-Sequence's p(z|x,y) [B, N] by Bayes' rule from [B, N, T] and [B, N]."""
    return (doc_log_probs + token_log_probs.float().sum(dim=2)).softmax(dim=1)


def token_posterior(token_log_probs: torch.Tensor, doc_log_probs: torch.Tensor) -> torch.Tensor:
    """RAG-Token's p(z|x,y_i) for each token [B, N, T] by Bayes' rule; the prior at padding."""
    return (doc_log_probs.unsqueeze(2) + token_log_probs.float()).softmax(dim=1)


def marginal_logits(logits: torch.Tensor, doc_log_probs: torch.Tensor) -> torch.Tensor:
    """RAG-Token's log p(y_i|x,y_<i) over the whole vocabulary [B, T, V] from [B, N, T, V] and [B, N]."""
    if logits.device.type != "cpu" or logits.requires_grad or doc_log_probs.requires_grad:
        return _marginal(logits, doc_log_probs[:, :, None, None], dim=1)
    # One token after the other, so that its N rows over the vocabulary stay in the processor's cache from pass to pass.
    found = torch.empty(logits.shape[0], *logits.shape[2:], dtype=torch.float32)
    for rows, prior, out in zip(logits, doc_log_probs, found, strict=True):
        for place in range(len(out)):
            out[place] = _marginal(rows[:, place], prior[:, None], dim=0)
    return found


def _marginal(logits: torch.Tensor, doc_log_probs: torch.Tensor, dim: int) -> torch.Tensor:
    """The log of the sum over dimension `dim`, the passages, of prior times softmax, in float32."""
    logits = logits.float()
    # One pass less over the vocabulary than a log-softmax and a sum would take.
    return (logits + (doc_log_probs - logits.logsumexp(dim=-1, keepdim=True))).logsumexp(dim=dim)


def entropy(log_probs: torch.Tensor) -> torch.Tensor:
    """Entropy in nats [B] of distributions over N given as log-probabilities [B, N]."""
    return torch.special.entr(log_probs.exp()).sum(dim=1)
