"""A generator alone: the closed-book baseline, trained and asked like a RAG model that never finds a passage.

Shapes: B questions.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any

import torch
from torch import nn

from ragstone.errors import InputError
from ragstone.model.answers import Answer, ScoredPassage
from ragstone.model.checkpoint import own_settings, record_own
from ragstone.model.contexts import ContextFormat
from ragstone.model.decoding import Decoding
from ragstone.model.fingerprint import fingerprint
from ragstone.model.generator import EncodedContexts, Generator
from ragstone.model.marginal import IGNORED
from ragstone.model.model import BatchLoss
from ragstone.model.reader import Reader
from ragstone.types import NO_PASSAGE

DEFAULT_LENGTH = 128
"""Tokens of a question that are read where the checkpoint does not say."""


class ClosedBook(nn.Module):
    """See model.Model: the question is the whole context, and it has all the weight."""

    n_docs = 0
    corpus_size: int | None = None
    retrieval: Mapping[str, Any] = MappingProxyType({})

    def __init__(
        self,
        generator: Generator[Any],
        model_type: str,
        *,
        context: ContextFormat,
        label_smoothing: float,
        max_target_length: int,
    ) -> None:
        super().__init__()
        self.generator_model = generator.model
        self.generator = generator
        self.model_type = model_type
        # With one context both marginalisations are the same; token by token the beam search's own order stays.
        self.reader = Reader(generator, "token")
        self.context = context
        self._label_smoothing = label_smoothing
        self._max_target_length = max_target_length

    def forward(self, questions: Sequence[str], answers: Sequence[str]) -> BatchLoss:
        """See model.Model.__call__."""
        labels = self.generator.tokenize_targets(answers, self._max_target_length)
        smoothing = self._label_smoothing
        reading = self.reader.read(*self._encode(questions), labels, smoothing > 0)
        loss, nll = reading.losses(smoothing)
        tokens = int((labels != IGNORED).sum())
        return BatchLoss(loss, nll.item(), len(questions), tokens, None, 0.0, 0.0)

    @torch.no_grad()
    def generate(self, questions: Sequence[str], decoding: Decoding, n_docs: int | None = None) -> list[list[Answer]]:
        """See model.Model.generate."""
        if not questions:
            return []
        found = self.reader.generate(*self._encode(questions), decoding)
        return [
            [Answer(self.generator.text(h.labels), h.score, passages=(), labels=h.labels) for h in hypotheses]
            for hypotheses in found
        ]

    def retrieve(self, questions: Sequence[str], n_docs: int | None = None) -> list[tuple[ScoredPassage, ...]]:
        """See model.Model.retrieve.

        Raises:
            InputError: always; there is nothing to retrieve from.
        """
        raise InputError(f"A {self.model_type} model retrieves nothing; take a rag_sequence or rag_token checkpoint.")

    def save(self, folder: Path) -> None:
        """See model.Model.save."""
        record_context(self.generator.model.config, self.context)
        self.generator.model.save_pretrained(folder)
        self.generator.tokenizer.save_pretrained(folder)

    def fingerprint(self) -> str:
        """See model.Model.fingerprint."""
        return fingerprint(self.generator_model, self.model_type, self.context)

    def source_fingerprint(self) -> None:
        """See model.Model.source_fingerprint."""

    def close(self) -> None:
        """See model.Model.close."""

    def _encode(self, questions: Sequence[str]) -> tuple[EncodedContexts, torch.Tensor]:
        texts = self.context.texts([[NO_PASSAGE]] * len(questions), questions)
        contexts = self.generator.encode(texts, self.context.max_length)
        return contexts, torch.zeros(len(questions), 1, device=contexts.device)


def recorded_context(config: Any) -> ContextFormat:
    """What a generator's config says of the text before a question and of the tokens that are read of both."""
    length = own_settings(config).get("max_source_length", DEFAULT_LENGTH)
    template = (own_settings(config).get("prompt") or {}).get("template")
    return ContextFormat(prefix=getattr(config, "prefix", None) or "", max_length=length, template=template)


def record_context(config: Any, context: ContextFormat) -> None:
    """Put into a generator's config what `recorded_context` reads from it; transformers ignores the length."""
    config.prefix = context.prefix or None
    record_own(config, max_source_length=context.max_length)
