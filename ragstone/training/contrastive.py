"""DPR's objective on vectors, and gradient caching, which makes its batch independent of memory.

Knows nothing about text: vectors in, loss and gradients out.
Shapes: B questions, P passages of the batch, D dimensions.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import nn

Embed = Callable[[], torch.Tensor]
"""Embeds one chunk of texts: vectors [b, D], with a graph where gradients are on."""


@dataclass(frozen=True)
class ContrastiveOutput:
    """The loss of a batch and how the positives fared in it."""

    loss: torch.Tensor
    """Scalar, mean over the questions."""
    ranks: torch.Tensor
    """int64 [B] place of each question's positive among the passages, 1 is best; on a tie the worse place."""

    @property
    def correct(self) -> int:
        """Questions whose positive comes first."""
        return int((self.ranks == 1).sum())


def contrastive_loss(
    questions: torch.Tensor,
    passages: torch.Tensor,
    targets: torch.Tensor,
    excluded: torch.Tensor | None = None,
    temperature: float = 1.0,
) -> ContrastiveOutput:
    """Cross entropy of each question's positive among all passages of the batch (Karpukhin et al. 2020, section 3.2).

    Args:
        questions: [B, D] question vectors.
        passages: [P, D] vectors of the positives and hard negatives of all questions.
        targets: int64 [B] the row of each question's positive in `passages`.
        excluded: bool [B, P] true where a passage must not count against a question, because it answers it as well.
        temperature: the inner products are divided by it.
    """
    scores = questions.float() @ passages.float().T / temperature
    if excluded is not None:
        scores = scores.masked_fill(excluded, float("-inf"))
    loss = nn.functional.cross_entropy(scores, targets)
    return ContrastiveOutput(loss, ranks_of(scores.detach(), targets))


def ranks_of(scores: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """int64 [B] the place of each target in `scores` [B, P]; equal scores count as better, so a collapse shows."""
    positive = scores.gather(1, targets.unsqueeze(1))
    return (scores >= positive).sum(dim=1)


def cached_backward(
    question_chunks: Sequence[Embed],
    passage_chunks: Sequence[Embed],
    loss_of: Callable[[torch.Tensor, torch.Tensor], ContrastiveOutput],
    scale: Callable[[torch.Tensor], torch.Tensor] = lambda loss: loss,
) -> ContrastiveOutput:
    """Add the gradient of a loss over all vectors to the weights, with the graph of one chunk in memory at a time.

    Gradient caching (Gao et al. 2021, arXiv 2101.06983): embed all chunks without graphs, take the loss's gradient
    with respect to the vectors, embed each chunk again with its graph and send that gradient through it. Random
    numbers are replayed, so dropout is the same both times and the gradient is that of the whole batch.

    Args:
        question_chunks: one function per chunk of questions, each giving vectors [b, D].
        passage_chunks: the same for the passages.
        loss_of: the loss of all question vectors [B, D] and passage vectors [P, D].
        scale: applied to the loss before its backward pass (a gradient scaler's).
    """
    if len(question_chunks) == 1 and len(passage_chunks) == 1:
        output = loss_of(question_chunks[0](), passage_chunks[0]())
        scale(output.loss).backward()
        return output
    chunks = [*question_chunks, *passage_chunks]
    vectors, states = [], []
    with torch.no_grad():
        for embed in chunks:
            states.append(_random_state())
            vectors.append(embed())
    after = _random_state()
    leaves = [chunk.detach().requires_grad_() for chunk in vectors]
    questions, passages = leaves[: len(question_chunks)], leaves[len(question_chunks) :]
    output = loss_of(torch.cat(questions), torch.cat(passages))
    scale(output.loss).backward()
    for embed, state, leaf in zip(chunks, states, leaves, strict=True):
        _set_random_state(state)
        embed().backward(leaf.grad)
    _set_random_state(after)
    return ContrastiveOutput(output.loss.detach(), output.ranks)


def _random_state() -> tuple[torch.Tensor, torch.Tensor | None]:
    return torch.get_rng_state(), torch.cuda.get_rng_state() if torch.cuda.is_available() else None


def _set_random_state(state: tuple[torch.Tensor, torch.Tensor | None]) -> None:
    torch.set_rng_state(state[0])
    if state[1] is not None:
        torch.cuda.set_rng_state(state[1])
