"""RAG-Sequence and RAG-Token: question encoder, retriever and reader in one differentiable model.

Shapes: B questions, N passages per question, D dimensions.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from ragstone.encoders.text_encoder import TextEncoder
from ragstone.errors import InputError
from ragstone.model.answers import Answer, ScoredPassage
from ragstone.model.contexts import ContextFormat
from ragstone.model.decoding import Decoding
from ragstone.model.finder import Finder
from ragstone.model.fingerprint import fingerprint
from ragstone.model.generator import EncodedContexts, Generator
from ragstone.model.marginal import IGNORED, document_log_probs, entropy
from ragstone.model.model import BatchLoss
from ragstone.model.model_type import RagType
from ragstone.model.reader import Hypothesis, Reader
from ragstone.types import NO_PASSAGE, IntArray, Passage


@dataclass(frozen=True)
class RagOptions:
    """What a RAG model needs to know besides its parts."""

    model_type: RagType = "rag_sequence"
    n_docs: int = 5
    context: ContextFormat = field(default_factory=ContextFormat)
    label_smoothing: float = 0.0
    max_target_length: int = 25
    """Tokens of an answer that training looks at."""
    freeze_question_encoder: bool = False


@dataclass(frozen=True)
class Evidence:
    """The passages for a batch of questions, as the reader takes them."""

    ids: IntArray
    """[B, N]"""
    passages: Sequence[Sequence[Passage]]
    """B lists of N."""
    scores: torch.Tensor
    """[B, N] what the finder gave, with gradients to the question encoder where they come from it."""
    log_prior: torch.Tensor
    """[B, N] log p(z|x), -inf where there is no passage."""


class RagModel(nn.Module):
    """See model.Model. `finder` may be None if passages are always given."""

    def __init__(
        self,
        question_encoder: TextEncoder,
        generator: Generator[Any],
        finder: Finder | None,
        options: RagOptions,
        *,
        save: Callable[[RagModel, Path], None],
        source_fingerprint: str | None = None,
        corpus_size: int | None = None,
        retrieval: Mapping[str, Any] | None = None,
    ) -> None:
        """`save` writes the checkpoint format that the parts were loaded from; `corpus_size` counts the passages.

        `retrieval` are the settings of the finder (see model.Model).
        """
        super().__init__()
        self.question_encoder = question_encoder
        self.generator_model = generator.model
        self.generator = generator
        self.finder = finder
        self.options = options
        self.model_type: str = options.model_type
        self.n_docs = options.n_docs
        self.corpus_size = corpus_size
        self.retrieval: Mapping[str, Any] = retrieval or {}
        self.reader = Reader(generator, "sequence" if options.model_type == "rag_sequence" else "token")
        self._save = save
        self._source_fingerprint = source_fingerprint
        # Weights that are not used have no gradients to exchange, which processes that train together would wait for.
        self._encoder_rests = options.freeze_question_encoder or (finder is not None and not finder.asks_encoder)
        if self._encoder_rests:
            question_encoder.requires_grad_(False)

    def train(self, mode: bool = True) -> RagModel:
        """As nn.Module.train; a frozen question encoder stays without dropout."""
        super().train(mode)
        if self._encoder_rests:
            self.question_encoder.eval()
        return self

    def forward(self, questions: Sequence[str], answers: Sequence[str]) -> BatchLoss:
        """See model.Model.__call__."""
        evidence = self.find(questions)
        labels = self.generator.tokenize_targets(answers, self.options.max_target_length)
        smoothing = self.options.label_smoothing
        reading = self.reader.read(self._encode(evidence, questions), evidence.log_prior, labels, smoothing > 0)
        loss, nll = reading.losses(smoothing)
        posterior = reading.posterior
        return BatchLoss(
            loss=loss,
            nll=nll.item(),
            questions=len(questions),
            target_tokens=int((labels != IGNORED).sum()),
            passage_ids=evidence.ids,
            prior_entropy=entropy(evidence.log_prior.detach()).sum().item(),
            posterior_entropy=torch.special.entr(posterior).sum().item(),
        )

    @torch.no_grad()
    def generate(
        self,
        questions: Sequence[str],
        decoding: Decoding,
        n_docs: int | None = None,
        *,
        passages: Sequence[Sequence[Passage]] | None = None,
        scores: Sequence[Sequence[float]] | None = None,
    ) -> list[list[Answer]]:
        """See model.Model.generate.

        Args:
            questions: B questions.
            decoding: how to search.
            n_docs: N; the model's own where None.
            passages: B lists of passages that were retrieved elsewhere, each of any length; nothing is retrieved then.
            scores: their scores, B lists as long as those of `passages`; the softmax over a list is the prior.

        Raises:
            InputError: passages without scores, lists of different lengths, or a score that is no finite number.
        """
        if not questions:
            return []
        if passages is None and scores is None:
            evidence = self.find(questions, n_docs)
        else:
            evidence = self._given(questions, passages, scores)
        found = self.reader.generate(self._encode(evidence, questions), evidence.log_prior, decoding)
        return [
            [self._as_answer(hypothesis, evidence, row) for hypothesis in hypotheses]
            for row, hypotheses in enumerate(found)
        ]

    @torch.no_grad()
    def retrieve(self, questions: Sequence[str], n_docs: int | None = None) -> list[tuple[ScoredPassage, ...]]:
        """See model.Model.retrieve."""
        if not questions:
            return []
        evidence = self.find(questions, n_docs)
        unknown = (float("nan"),) * evidence.ids.shape[1]
        return [self._scored(evidence, row, unknown) for row in range(len(questions))]

    def find(self, questions: Sequence[str], n_docs: int | None = None) -> Evidence:
        """Retrieve passages; gradients of their scores flow to the question encoder, where the finder asks it.

        Raises:
            InputError: there is no knowledge source.
        """
        if self.finder is None:
            raise InputError("This model has no knowledge source; give one with --passages_path.")
        found = self.finder.find(questions, n_docs or self.n_docs)
        device = self.question_encoder.device
        scores, mask = found.scores.to(device), torch.from_numpy(found.ids >= 0).to(device)
        return Evidence(found.ids, found.passages, scores, document_log_probs(scores, mask))

    def save(self, folder: Path) -> None:
        """See model.Model.save."""
        self._save(self, folder)

    def fingerprint(self) -> str:
        """See model.Model.fingerprint."""
        settings = [self.options.model_type, self.options.context, self.question_encoder.fingerprint()]
        return fingerprint(self.generator_model, *settings)

    def source_fingerprint(self) -> str | None:
        """See model.Model.source_fingerprint."""
        return self._source_fingerprint

    def close(self) -> None:
        """See model.Model.close."""
        if self.finder is not None:
            self.finder.close()

    def _encode(self, evidence: Evidence, questions: Sequence[str]) -> EncodedContexts:
        context = self.options.context
        if context.decoded_question:
            questions = self.question_encoder.read_back(questions)
        return self.generator.encode(context.texts(evidence.passages, questions), context.max_length)

    def _given(
        self,
        questions: Sequence[str],
        passages: Sequence[Sequence[Passage]] | None,
        scores: Sequence[Sequence[float]] | None,
    ) -> Evidence:
        """Passages and scores of a caller as evidence: lists padded to one length, padding masked."""
        if passages is None or scores is None or not len(questions) == len(passages) == len(scores):
            raise InputError(
                f"{_count(len(questions), 'question')} {'needs' if len(questions) == 1 else 'need'} as many lists of "
                "passages and as many lists of scores; give both."
            )
        for row, (found, values) in enumerate(zip(passages, scores, strict=True)):
            if len(found) != len(values):
                raise InputError(
                    f"The question {questions[row]!r} has {_count(len(found), 'passage')} but "
                    f"{_count(len(values), 'score')}; give each passage one score."
                )
            if not all(map(math.isfinite, values)):
                raise InputError(
                    f"The question {questions[row]!r} has a passage whose score is not finite; give it a finite one."
                )
        n = max(1, *map(len, passages))
        padded = [[*found, *[NO_PASSAGE] * (n - len(found))] for found in passages]
        device = self.question_encoder.device
        rows = [[*map(float, values), *[0.0] * (n - len(values))] for values in scores]
        weights = torch.tensor(rows, dtype=torch.float32, device=device)
        mask = torch.tensor([[i < len(found) for i in range(n)] for found in passages], device=device)
        ids = np.array([[passage.id for passage in row] for row in padded], dtype=np.int64)
        return Evidence(ids, padded, weights, document_log_probs(weights, mask))

    def _as_answer(self, hypothesis: Hypothesis, evidence: Evidence, row: int) -> Answer:
        return Answer(
            text=self.generator.text(hypothesis.labels),
            score=hypothesis.score,
            passages=self._scored(evidence, row, hypothesis.posterior),
            labels=hypothesis.labels,
        )

    @staticmethod
    def _scored(evidence: Evidence, row: int, posterior: Sequence[float]) -> tuple[ScoredPassage, ...]:
        scores, priors = evidence.scores[row].tolist(), evidence.log_prior[row].exp().tolist()
        columns = zip(evidence.passages[row], scores, priors, posterior, strict=True)
        return tuple(ScoredPassage(*values) for values in columns if values[0] != NO_PASSAGE)


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"
