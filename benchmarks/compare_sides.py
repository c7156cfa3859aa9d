"""One checkpoint over one knowledge source, in transformers' Rag classes and in Ragstone: the two sides of compare.

Both get the same questions and answers, in the spelling that the question tokenizer gives back: RagRetriever hands the
generator no other. Dropout is off on both, so that losses can be compared.

Shapes: B questions, N passages per question, T target tokens, D dimensions.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from torch import nn
from transformers.models.dpr.modeling_dpr import DPRQuestionEncoderOutput

from ragstone.encoders.precision import Precision, autocast, best_device
from ragstone.encoders.text_encoder import TextEncoder
from ragstone.knowledge.source import KnowledgeSource
from ragstone.model.checkpoint import load_checkpoint, own_settings
from ragstone.model.context_ids import context_ids
from ragstone.model.decoding import Decoding
from ragstone.model.open import ModelRequest, locate_source, open_model
from ragstone.model.rag import RagModel, RagType
from ragstone.training.optimizer import OptimizerSettings, make_optimizer

BEAMS = 4
MAX_LENGTH = 16
"""Of answers, in tokens."""
LEARNING_RATE = 1e-5
TARGET_LENGTH = 25


@dataclass(frozen=True)
class Setup:
    """What both sides are made of."""

    checkpoint: str
    passages_path: str
    index_path: str
    model_type: RagType
    precision: Precision
    n_docs: int = 5


class Side(Protocol):
    """What is timed."""

    def step(self, questions: Sequence[str], answers: Sequence[str]) -> float:
        """A training step with its optimiser; the loss per question."""

    def answers(self, questions: Sequence[str]) -> list[str]:
        """The best answer to each question, found by beam search."""

    def contexts(self, questions: Sequence[str], vectors: np.ndarray) -> torch.Tensor:
        """From question vectors [B, D] to the tokens of all contexts; their passages' ids [B, N]."""

    def embed(self, titles: Sequence[str], texts: Sequence[str]) -> np.ndarray:
        """Vectors [n, D] of passages."""


class Ragstone:
    """This toolkit's side."""

    def __init__(self, setup: Setup) -> None:
        request = ModelRequest(
            setup.checkpoint,
            model_type=setup.model_type,
            passages_path=setup.passages_path,
            index_path=setup.index_path,
            n_docs=setup.n_docs,
            max_target_length=TARGET_LENGTH,
        )
        model = open_model(request)
        assert isinstance(model, RagModel)
        self._model = model
        self._precision: Precision = setup.precision
        self._optimizer: torch.optim.Optimizer | None = None

    def step(self, questions: Sequence[str], answers: Sequence[str]) -> float:
        self._optimizer = self._optimizer or make_optimizer(self._model, OptimizerSettings(LEARNING_RATE))
        with self._autocast():
            result = self._model(questions, answers)
        loss = result.loss / len(questions)
        loss.backward()
        self._optimizer.step()
        self._optimizer.zero_grad()
        return loss.item()

    def answers(self, questions: Sequence[str]) -> list[str]:
        decoding = Decoding(num_beams=BEAMS, max_length=MAX_LENGTH)
        with self._autocast():
            return [found[0].text for found in self._model.generate(questions, decoding)]

    def contexts(self, questions: Sequence[str], vectors: np.ndarray) -> torch.Tensor:
        model: Any = self._model
        found = model.finder.retriever.retrieve(vectors, model.n_docs)
        format_ = model.options.context
        context_ids(model.generator.tokenizer, format_.texts(found.passages, questions), format_.max_length)
        return torch.from_numpy(found.ids)

    def context_lengths(self, questions: Sequence[str]) -> tuple[list[int], int]:
        """Tokens of each context of `questions`, and how many are read at most."""
        model: Any = self._model
        format_ = model.options.context
        texts = format_.texts([[found.passage for found in row] for row in model.retrieve(questions)], questions)
        return [
            len(ids) for ids in context_ids(model.generator.tokenizer, texts, format_.max_length)
        ], format_.max_length

    def embed(self, titles: Sequence[str], texts: Sequence[str]) -> np.ndarray:
        encoder = self._model.question_encoder
        with torch.no_grad():
            return encoder.embed_tokens(encoder.token_lists(texts, titles), precision=self._precision)

    def _autocast(self) -> AbstractContextManager[object]:
        return autocast(best_device(), self._precision)


class Pooled(nn.Module):
    """A question encoder as RagModel of transformers calls one: the vector is the first thing that it returns."""

    def __init__(self, encoder: TextEncoder) -> None:
        super().__init__()
        self.encoder = encoder

    def forward(
        self, input_ids: torch.Tensor, attention_mask: torch.Tensor | None = None, **_: Any
    ) -> DPRQuestionEncoderOutput:
        if attention_mask is None:
            # RagSequenceForGeneration.generate gives none when it scores its candidates.
            attention_mask = (input_ids != self.encoder.tokenizer.pad_token_id).long()
        return DPRQuestionEncoderOutput(self.encoder(input_ids=input_ids, attention_mask=attention_mask))


class Reference:
    """transformers' side, with RagRetriever."""

    def __init__(self, setup: Setup) -> None:
        from transformers import RagRetriever, RagSequenceForGeneration, RagTokenForGeneration

        kind = RagSequenceForGeneration if setup.model_type == "rag_sequence" else RagTokenForGeneration
        self.retriever = RagRetriever.from_pretrained(
            setup.checkpoint,
            index_name="custom",
            passages_path=setup.passages_path,
            index_path=setup.index_path,
            n_docs=setup.n_docs,
        )
        model = kind.from_pretrained(setup.checkpoint, retriever=self.retriever, n_docs=setup.n_docs).eval()
        encoder = load_checkpoint(setup.checkpoint).question_encoder
        encoder.model = model.rag.question_encoder
        model.rag.question_encoder = Pooled(encoder.eval())
        # The end token and its like, which transformers does not keep in a RAG checkpoint.
        model.rag.generator.generation_config.update(**own_settings(model.config).get("generation", {}))
        _mask_padding(model.rag.generator)
        self.model = model.to(best_device())
        self._encoder = encoder
        self._tokenizer = self.retriever.generator_tokenizer
        self._precision: Precision = setup.precision
        self._n_docs = setup.n_docs
        self._optimizer: torch.optim.Optimizer | None = None

    def spelled(self, questions: Sequence[str]) -> list[str]:
        """The questions as RagRetriever hands them to the generator."""
        tokenizer = self._encoder.tokenizer
        return tokenizer.batch_decode(tokenizer(list(questions))["input_ids"], skip_special_tokens=True)

    def step(self, questions: Sequence[str], answers: Sequence[str]) -> float:
        self._optimizer = self._optimizer or torch.optim.AdamW(self.model.parameters(), lr=LEARNING_RATE)
        with autocast(best_device(), self._precision):
            loss = self.model(**self._inputs(questions), labels=self._labels(answers), reduce_loss=True).loss
        loss = loss / len(questions)
        loss.backward()
        self._optimizer.step()
        self._optimizer.zero_grad()
        return loss.item()

    @torch.no_grad()
    def answers(self, questions: Sequence[str]) -> list[str]:
        start = self.model.config.generator.bos_token_id
        with autocast(best_device(), self._precision):
            found = self.model.generate(
                **self._inputs(questions),
                num_beams=BEAMS,
                min_length=1,
                max_length=MAX_LENGTH,
                bad_words_ids=None if start is None else [[start, start]],
            )
        return [text.strip() for text in self._tokenizer.batch_decode(found, skip_special_tokens=True)]

    def contexts(self, questions: Sequence[str], vectors: np.ndarray) -> torch.Tensor:
        ids = self._encoder.tokenizer(list(questions), padding=True, return_tensors="pt")["input_ids"]
        return self.retriever(ids, vectors, n_docs=self._n_docs, return_tensors="pt")["doc_ids"]

    @torch.no_grad()
    def embed(self, titles: Sequence[str], texts: Sequence[str]) -> np.ndarray:
        """As the reference's script: 16 passages at a time in their order, padded to the longest."""
        encoder, found = self._encoder, []
        for start in range(0, len(texts), 16):
            rows = slice(start, start + 16)
            tokens = encoder.token_lists(texts[rows], titles[rows])
            batch = encoder.tokenizer.pad(tokens, return_tensors="pt")
            with autocast(best_device(), self._precision):
                found.append(encoder(**batch.to(best_device())).float().cpu().numpy())
        return np.concatenate(found)

    def _inputs(self, questions: Sequence[str]) -> dict[str, torch.Tensor]:
        batch = self._encoder.tokenizer(list(questions), padding=True, return_tensors="pt").to(best_device())
        return {name: batch[name] for name in ("input_ids", "attention_mask")}

    def _labels(self, answers: Sequence[str]) -> torch.Tensor:
        """Targets behind the start token, which these classes expect in front, padded to the longest."""
        config = self.model.config.generator
        self._tokenizer.padding_side = "right"
        batch = self._tokenizer(
            text_target=list(answers), truncation=True, max_length=TARGET_LENGTH, padding=True, return_tensors="pt"
        )
        labels = batch["input_ids"]
        start = torch.full((len(labels), 1), config.decoder_start_token_id)
        return torch.cat([start, labels], dim=1).to(best_device())


def _mask_padding(generator: Any) -> None:
    """Repair what RagSequenceForGeneration.generate gets of padding.

    It lets the generator read the padding of a context as text. And beam search pads answers with the end token where
    the padding token's number is 0, which then counts as text in their scores.
    """
    search, padding = generator.generate, generator.config.pad_token_id
    end = generator.generation_config.eos_token_id

    def masked(ids: torch.Tensor, **options: Any) -> Any:
        found = search(ids, **{**options, "attention_mask": (ids != padding).long()})
        behind = (found[:, 1:] == end).cumsum(dim=1) - (found[:, 1:] == end).long() > 0
        found[:, 1:][behind] = padding
        return found

    generator.generate = masked


SIDES: dict[str, Callable[[Setup], Side]] = {"reference": Reference, "ragstone": Ragstone}


def source_of(checkpoint: Path, passages_path: Path | None) -> tuple[str, str]:
    """Passages and index of a knowledge source: the one that the checkpoint records where none is given."""
    recorded = json.loads((checkpoint / "config.json").read_text(encoding="utf-8")).get("passages_path")
    location = locate_source(recorded if passages_path is None else str(passages_path), None, None)
    source = KnowledgeSource(Path(location.passages_path)).info()
    return source.passages_path, source.index_path
