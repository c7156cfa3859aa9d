"""The reader: a generator that reads N passages for each question and marginalises them out.

Shapes: B questions, N passages per question, C candidate answers, T target tokens, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch

from ragstone.model.decoding import Decoding
from ragstone.model.generator import EncodedContexts, Generator
from ragstone.model.marginal import (
    IGNORED,
    marginal_logits,
    mean_log_probs,
    sequence_log_likelihood,
    sequence_posterior,
    target_log_probs,
    token_log_likelihood,
    token_posterior,
)

Marginalisation = Literal["sequence", "token"]

ROWS_AT_ONCE = 256
"""Candidate-passage pairs that are scored in one pass: enough to fill the processor, few enough for its memory."""


@dataclass(frozen=True)
class Reading:
    """What reading the passages says of given answers."""

    log_likelihood: torch.Tensor
    """[B] log p(y|x)"""
    posterior: torch.Tensor
    """[B, N] p(z|x,y); under RAG-Token the average over the answer's tokens."""
    smoothing: torch.Tensor | None
    """[B] the log-likelihood's counterpart for label smoothing, where asked for."""


@dataclass(frozen=True)
class Hypothesis:
    """An answer that was found, as labels of the generator."""

    labels: tuple[int, ...]
    score: float
    """log p(y|x)"""
    posterior: tuple[float, ...]
    """p(z|x,y) of each passage."""


class Reader:
    """Scores and finds answers given contexts and the log-probabilities of their passages."""

    def __init__(self, generator: Generator, marginalisation: Marginalisation) -> None:
        self.generator = generator
        self.marginalisation = marginalisation

    def read(
        self, contexts: EncodedContexts, doc_log_probs: torch.Tensor, labels: torch.Tensor, smoothing: bool = False
    ) -> Reading:
        """Score one answer per question.

        Args:
            contexts: B·N contexts.
            doc_log_probs: [B, N] log p(z|x).
            labels: [B, T], -100 at padding.
            smoothing: also give what label smoothing needs.
        """
        questions, n = doc_log_probs.shape
        per_passage = labels.repeat_interleave(n, dim=0)
        logits = self.generator.logits(contexts, per_passage)
        token_log_probs = target_log_probs(logits, per_passage).view(questions, n, -1)
        reading = self._marginalise(token_log_probs, doc_log_probs, labels)
        if not smoothing:
            return reading
        smooth = self._smoothing(logits, doc_log_probs, labels)
        return Reading(reading.log_likelihood, reading.posterior, smooth)

    @torch.no_grad()
    def generate(
        self, contexts: EncodedContexts, doc_log_probs: torch.Tensor, decoding: Decoding
    ) -> list[list[Hypothesis]]:
        """Find answers to B questions from their B·N contexts, best first, at most num_return_sequences each."""
        n = doc_log_probs.shape[1]
        if self.marginalisation == "token":
            found = self.generator.search(contexts, doc_log_probs, decoding)
        else:
            # Each passage on its own: groups of one context, which has all the weight.
            single = self.generator.search(contexts, doc_log_probs.new_zeros(len(contexts), 1), decoding)
            found = [[row for rows in single[i : i + n] for row in rows] for i in range(0, len(single), n)]
        candidates = [[list(row) for row in dict.fromkeys(map(tuple, rows))] for rows in found]
        hypotheses = self._score(contexts, doc_log_probs, candidates)
        if self.marginalisation == "sequence":
            if not decoding.thorough:
                hypotheses = self._fast(hypotheses, found, doc_log_probs)
            hypotheses = [sorted(row, key=lambda h: -h.score) for row in hypotheses]
        return [row[: decoding.num_return_sequences] for row in hypotheses]

    def _score(
        self, contexts: EncodedContexts, doc_log_probs: torch.Tensor, candidates: list[list[list[int]]]
    ) -> list[list[Hypothesis]]:
        """Score every candidate of every question with every passage of the question."""
        n = doc_log_probs.shape[1]
        owners = [question for question, rows in enumerate(candidates) for _ in rows]
        flat = [row for rows in candidates for row in rows]
        skipped = [self._preamble(rows) for rows in candidates]
        scored: list[list[Hypothesis]] = [[] for _ in candidates]
        step = max(1, ROWS_AT_ONCE // n)
        for start in range(0, len(flat), step):
            part, questions = flat[start : start + step], owners[start : start + step]
            labels = _pad(part, doc_log_probs.device)
            owner = torch.tensor(questions, device=doc_log_probs.device)
            rows = owner.unsqueeze(1) * n + torch.arange(n, device=owner.device)
            per_passage = labels.repeat_interleave(n, dim=0)
            logits = self.generator.logits(contexts.select(rows.flatten()), per_passage)
            token_log_probs = target_log_probs(logits, per_passage).view(len(part), n, -1)
            counted = labels.clone()
            for i, question in enumerate(questions):
                counted[i, : skipped[question]] = IGNORED
            token_log_probs = token_log_probs.masked_fill((counted == IGNORED).unsqueeze(1), 0.0)
            reading = self._marginalise(token_log_probs, doc_log_probs[owner], counted)
            values = zip(part, questions, reading.log_likelihood.tolist(), reading.posterior.tolist(), strict=True)
            for row, question, score, posterior in values:
                scored[question].append(Hypothesis(tuple(row), score, tuple(posterior)))
        return scored

    def _preamble(self, candidates: list[list[int]]) -> int:
        """How many first labels say nothing: the start-of-sequence token, where all candidates begin with it.

        RagSequenceForGeneration.generate of transformers leaves it out of the score in the same case.
        """
        return int(all(len(row) > 1 and self.generator.is_preamble(row[0]) for row in candidates))

    @staticmethod
    def _fast(
        hypotheses: list[list[Hypothesis]], found: list[list[list[int]]], doc_log_probs: torch.Tensor
    ) -> list[list[Hypothesis]]:
        """Fast decoding (Lewis et al., section 2.5): passages that did not propose an answer count as p(y|x,z) = 0.

        p(z, y|x) is p(z|x,y) p(y|x), so leaving passages out scales the score by the posterior that stays.
        """
        n = doc_log_probs.shape[1]
        result = []
        for row, rows in zip(hypotheses, found, strict=True):
            per_passage = len(rows) // n
            proposers = [{tuple(labels) for labels in rows[z * per_passage : (z + 1) * per_passage]} for z in range(n)]
            fast = []
            for hypothesis in row:
                kept = [p if hypothesis.labels in proposers[z] else 0.0 for z, p in enumerate(hypothesis.posterior)]
                mass = torch.tensor(sum(kept)).log().item()
                posterior = tuple(p / sum(kept) if sum(kept) else 0.0 for p in kept)
                fast.append(Hypothesis(hypothesis.labels, hypothesis.score + mass, posterior))
            result.append(fast)
        return result

    def _marginalise(self, token_log_probs: torch.Tensor, doc_log_probs: torch.Tensor, labels: torch.Tensor) -> Reading:
        if self.marginalisation == "sequence":
            likelihood = sequence_log_likelihood(token_log_probs, doc_log_probs)
            return Reading(likelihood, sequence_posterior(token_log_probs, doc_log_probs).detach(), None)
        valid = (labels != IGNORED).unsqueeze(1)
        posterior = token_posterior(token_log_probs, doc_log_probs).detach() * valid
        average = posterior.sum(dim=2) / valid.sum(dim=2).clamp(min=1)
        return Reading(token_log_likelihood(token_log_probs, doc_log_probs), average, None)

    def _smoothing(self, logits: torch.Tensor, doc_log_probs: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        """The smoothing terms of transformers' get_nll, divided by the vocabulary's size.

        RAG-Token: the marginal's log-probabilities averaged over the vocabulary, summed over the target. RAG-Sequence:
        get_nll sums log-probabilities over the vocabulary before the log-sum-exp over passages, prior included, so
        that the passage that fits best decides nearly alone; the same is computed here from averages.
        """
        questions, n = doc_log_probs.shape
        vocabulary = logits.shape[-1]
        if self.marginalisation == "sequence":
            means = mean_log_probs(logits, labels.repeat_interleave(n, dim=0)).view(questions, n, -1).sum(dim=2)
            return ((means + doc_log_probs) * vocabulary).logsumexp(dim=1) / vocabulary
        marginal = marginal_logits(logits.view(questions, n, -1, vocabulary), doc_log_probs)
        return marginal.mean(dim=-1).masked_fill(labels == IGNORED, 0.0).sum(dim=1)


def _pad(rows: Sequence[Sequence[int]], device: torch.device) -> torch.Tensor:
    """Label sequences as a tensor [C, T], -100 at padding."""
    length = max(map(len, rows))
    return torch.tensor([[*row, *[IGNORED] * (length - len(row))] for row in rows], device=device)
