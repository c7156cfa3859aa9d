"""The reader: a generator that reads N passages for each question and marginalises them out.

Shapes: B questions, N passages per question, C candidate answers, R contexts, A answers per context, T target tokens,
V vocabulary.
"""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch

from ragstone.model.decoding import Decoding
from ragstone.model.generator import EncodedContexts, Generator
from ragstone.model.marginal import (
    IGNORED,
    mean_log_probs,
    mean_marginal_log_probs,
    sequence_log_likelihood,
    sequence_posterior,
    shared_log_probs,
    target_log_probs,
    token_log_likelihood,
    token_posterior,
)

Marginalisation = Literal["sequence", "token"]

TOKENS_AT_ONCE = 512
GPU_TOKENS_AT_ONCE = 4096
"""Target tokens that are scored in one pass: enough to fill the processor, few enough for its memory, of which each
takes a row over the vocabulary."""


@dataclass(frozen=True)
class Reading:
    """What reading the passages says of given answers."""

    log_likelihood: torch.Tensor
    """[B] log p(y|x)"""
    posterior: torch.Tensor
    """[B, N] p(z|x,y); under RAG-Token the average over the answer's tokens."""
    smoothing: torch.Tensor | None
    """[B] the log-likelihood's counterpart for label smoothing, where asked for."""

    def losses(self, label_smoothing: float) -> tuple[torch.Tensor, torch.Tensor]:
        """The loss over all answers, and their negative log-likelihood: scalars, the same without smoothing."""
        nll = -self.log_likelihood.sum()
        if self.smoothing is None:
            return nll, nll
        return (1 - label_smoothing) * nll - label_smoothing * self.smoothing.sum(), nll


@dataclass(frozen=True)
class Hypothesis:
    """An answer that was found, as labels of the generator."""

    labels: tuple[int, ...]
    score: float
    """log p(y|x)"""
    posterior: tuple[float, ...]
    """p(z|x,y) of each passage."""


@dataclass(frozen=True)
class Candidate:
    """An answer that the search proposes, before it is scored."""

    question: int
    labels: tuple[int, ...]
    readers: tuple[int, ...]
    """The passages that it is scored with."""


class Reader:
    """Scores and finds answers given contexts and the log-probabilities of their passages."""

    def __init__(self, generator: Generator[Any], marginalisation: Marginalisation) -> None:
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
        per_passage = labels.unsqueeze(1).expand(-1, n, -1)
        logits = self.generator.target_logits(contexts, per_passage.reshape(questions * n, 1, -1))
        token_log_probs = target_log_probs(logits, per_passage)
        reading = self._marginalise(token_log_probs, doc_log_probs, labels)
        if not smoothing:
            return reading
        smooth = self._smoothing(logits, doc_log_probs, labels)
        return Reading(reading.log_likelihood, reading.posterior, smooth)

    @torch.no_grad()
    def generate(
        self, contexts: EncodedContexts, doc_log_probs: torch.Tensor, decoding: Decoding
    ) -> list[list[Hypothesis]]:
        """Find answers to B questions from their B·N contexts, at most num_return_sequences each.

        Best first, except that samples stand in the order drawn, repeats included. Passages of prior 0 are not read.

        Raises:
            InputError: RAG-Token is asked for more answers than it has beams.
        """
        with _seeded(decoding.seed, doc_log_probs.device):
            candidates = self._candidates(contexts, doc_log_probs, decoding)
        if not decoding.samples:
            # Beams that the length limit ends alike are one answer.
            candidates = list(dict.fromkeys(candidates))
        found: list[list[Hypothesis]] = [[] for _ in doc_log_probs]
        scores = self._score(contexts, doc_log_probs, list(dict.fromkeys(candidates)))
        for candidate in candidates:
            found[candidate.question].append(scores[candidate])
        if self.marginalisation == "sequence" and not decoding.samples:
            found = [sorted(row, key=lambda hypothesis: -hypothesis.score) for row in found]
        return [row[: decoding.num_return_sequences] for row in found]

    def _candidates(
        self, contexts: EncodedContexts, doc_log_probs: torch.Tensor, decoding: Decoding
    ) -> list[Candidate]:
        """What the search proposes, in the order of questions and then of the search."""
        readable = doc_log_probs > -torch.inf
        everyone = [tuple(row.nonzero().flatten().tolist()) for row in readable]
        if self.marginalisation == "token":
            decoding.refuse_more_answers_than_beams()
            found = self.generator.search(contexts, doc_log_probs, decoding)
            return [Candidate(i, tuple(row), everyone[i]) for i, rows in enumerate(found) for row in rows]
        n = doc_log_probs.shape[1]
        if decoding.samples:
            # A draw from the marginal: a passage from the prior, then an answer given that passage.
            drawn = torch.multinomial(doc_log_probs.exp(), decoding.num_return_sequences, replacement=True)
            rows = (torch.arange(len(drawn), device=drawn.device)[:, None] * n + drawn).flatten()
            each = dataclasses.replace(decoding, num_return_sequences=1)
        else:
            rows = readable.flatten().nonzero().flatten()
            each = dataclasses.replace(decoding, num_return_sequences=decoding.num_beams)
        # Each passage on its own: groups of one context, which has all the weight.
        found = self.generator.search(contexts.select(rows), doc_log_probs.new_zeros(len(rows), 1), each)
        proposals = [
            (row // n, tuple(labels), row % n)
            for row, proposed in zip(rows.tolist(), found, strict=True)
            for labels in proposed
        ]
        if decoding.samples:
            return [Candidate(question, labels, everyone[question]) for question, labels, _ in proposals]
        proposers: dict[tuple[int, tuple[int, ...]], list[int]] = {}
        for question, labels, passage in proposals:
            proposers.setdefault((question, labels), []).append(passage)
        return [
            Candidate(question, labels, everyone[question] if decoding.thorough else tuple(passages))
            for (question, labels), passages in proposers.items()
        ]

    def _score(
        self, contexts: EncodedContexts, doc_log_probs: torch.Tensor, candidates: list[Candidate]
    ) -> dict[Candidate, Hypothesis]:
        """log p(y|x) and posterior of every candidate, marginalised over its readers."""
        if not candidates:
            return {}
        n, device = doc_log_probs.shape[1], doc_log_probs.device
        labels = _pad([candidate.labels for candidate in candidates], device)
        token_log_probs = torch.zeros(len(candidates), n, labels.shape[1], device=device)
        prior = torch.full((len(candidates), n), -torch.inf, device=device)
        at_once = TOKENS_AT_ONCE if device.type == "cpu" else GPU_TOKENS_AT_ONCE
        for part in _parts(candidates, n, at_once):
            rows = torch.tensor([context for context, _ in part], device=device)
            read = torch.nn.utils.rnn.pad_sequence(
                [torch.tensor(answers, device=device) for _, answers in part], batch_first=True, padding_value=-1
            )
            # [R, A, T]: the candidates that each context is read for.
            wanted = labels[read].masked_fill((read < 0).unsqueeze(2), IGNORED)
            wanted = wanted[:, :, : int((wanted != IGNORED).any(dim=0).any(dim=0).sum())]
            first, shared = _beginnings(wanted)
            found = shared_log_probs(self.generator.target_logits(contexts.select(rows), wanted, first), wanted, shared)
            context, answer = (read >= 0).nonzero(as_tuple=True)
            owner, reader = read[context, answer], rows[context] % n
            token_log_probs[owner, reader, : wanted.shape[2]] = found[context, answer]
            prior[owner, reader] = doc_log_probs.flatten()[rows[context]]
        opening = self._openings(candidates)
        for i, candidate in enumerate(candidates):
            labels[i, : opening[candidate.question]] = IGNORED
        token_log_probs = token_log_probs.masked_fill((labels == IGNORED).unsqueeze(1), 0.0)
        reading = self._marginalise(token_log_probs, prior, labels)
        values = zip(candidates, reading.log_likelihood.tolist(), reading.posterior.tolist(), strict=True)
        return {
            candidate: Hypothesis(candidate.labels, score, tuple(posterior)) for candidate, score, posterior in values
        }

    def _openings(self, candidates: list[Candidate]) -> dict[int, int]:
        """For each question, how many first labels say nothing: a start-of-sequence token before all its candidates.

        RagSequenceForGeneration.generate of transformers leaves it out of the score in the same case.
        """
        opening = {candidate.question: 1 for candidate in candidates}
        for candidate in candidates:
            if len(candidate.labels) < 2 or not self.generator.is_preamble(candidate.labels[0]):
                opening[candidate.question] = 0
        return opening

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
        n = doc_log_probs.shape[1]
        if self.marginalisation == "sequence":
            vocabulary = logits.shape[-1]
            means = mean_log_probs(logits, labels.unsqueeze(1).expand(-1, n, -1)).sum(dim=2)
            return ((means + doc_log_probs) * vocabulary).logsumexp(dim=1) / vocabulary
        if n == 1:
            return mean_log_probs(logits, labels).sum(dim=1)
        return mean_marginal_log_probs(logits, doc_log_probs, labels).sum(dim=1)


@contextlib.contextmanager
def _seeded(seed: int | None, device: torch.device) -> Iterator[None]:
    """Random numbers from `seed`, without a trace in those that others draw; None leaves them alone."""
    if seed is None:
        yield
        return
    with torch.random.fork_rng([device] if device.type == "cuda" else []):
        torch.manual_seed(seed)
        yield


def _parts(candidates: Sequence[Candidate], n: int, tokens: int) -> Iterator[list[tuple[int, list[int]]]]:
    """Contexts, each with the numbers of the candidates that it is read for, in runs.

    A run takes about so many target `tokens`, when each of its contexts has as many candidates as the one that
    has most, and each candidate as many tokens as the longest; so contexts stand in the order of their candidates'
    number, and one that has very many comes more than once.
    """
    answers: dict[int, list[int]] = {}
    for number, candidate in enumerate(candidates):
        for reader in candidate.readers:
            answers.setdefault(candidate.question * n + reader, []).append(number)
    most = max(1, tokens // max(len(candidate.labels) for candidate in candidates))
    pieces = [(context, row[i : i + most]) for context, row in answers.items() for i in range(0, len(row), most)]
    part: list[tuple[int, list[int]]] = []
    longest = 0
    for context, numbers in sorted(pieces, key=lambda piece: len(piece[1])):
        length = max(len(candidates[number].labels) for number in numbers)
        longest = max(longest, length)
        if part and (len(part) + 1) * len(numbers) * longest > tokens:
            yield part
            part, longest = [], length
        part.append((context, numbers))
    if part:
        yield part


def _beginnings(labels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Where answers [R, A, T] to a context begin alike, so that the next token has the same scores in all of them.

    Returns:
        [R, A, T] true at the first label of those with the same labels before them, and for each of the M labels that
        are no padding, in their order, the number of the true one that it shares its scores with.
    """
    valid = labels != IGNORED
    same = labels.unsqueeze(2) == labels.unsqueeze(1)
    # [R, A, A, T] whether two answers are the same up to the label before each.
    before = torch.nn.functional.pad(same[..., :-1], (1, 0), value=True).cumprod(dim=3).bool()
    # The first answer that has a label there itself.
    owner = (before & valid.unsqueeze(1)).to(torch.uint8).argmax(dim=2)
    answers = torch.arange(labels.shape[1], device=labels.device)[:, None]
    first = valid & (owner == answers)
    numbers = (first.flatten().cumsum(0) - 1).view_as(labels)
    return first, numbers.gather(1, owner)[valid]


def _pad(rows: Sequence[Sequence[int]], device: torch.device) -> torch.Tensor:
    """Label sequences as a tensor [C, T], -100 at padding."""
    length = max(map(len, rows))
    return torch.tensor([[*row, *[IGNORED] * (length - len(row))] for row in rows], device=device)
