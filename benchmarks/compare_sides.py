"""One checkpoint over one knowledge source, in transformers' Rag classes and in Ragstone: the two sides of compare.

Both get the same questions and answers, in the spelling that the question tokenizer gives back: RagRetriever hands the
generator no other. Dropout is off on both, so that losses can be compared. A side loads its model when it needs it.

Shapes: B questions, N passages per question, T target tokens, D dimensions.
"""

from __future__ import annotations

import csv
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch

from benchmarks.reference_answer import repair
from benchmarks.timeline import Timeline, watched, watched_encoder
from ragstone.allocation import keeping_freed_memory
from ragstone.arithmetic import Precision
from ragstone.commands.eval import EvalSettings, eval
from ragstone.denormals import flushing_denormals
from ragstone.encoders.load import load_encoder
from ragstone.encoders.precision import autocast, best_device
from ragstone.encoders.text_encoder import TextEncoder
from ragstone.evaluation.metrics import exact_matches, f1s
from ragstone.knowledge.build import BuildPlan, build_knowledge_source
from ragstone.knowledge.source import PASSAGES_NAME
from ragstone.knowledge.store import PassageStore
from ragstone.model.context_tokenizer import ContextTokenizer
from ragstone.model.decoding import Decoding
from ragstone.model.model_type import RagType
from ragstone.model.open import ModelRequest, open_model
from ragstone.model.rag import RagModel
from ragstone.training.optimizer import OptimizerSettings, make_optimizer

BEAMS = 4
MAX_LENGTH = 16
"""Of answers, in tokens."""
LEARNING_RATE = 1e-5
TARGET_LENGTH = 25
REFERENCE_BATCH = 8
"""Questions that the reference's evaluation answers at once: its default, and it goes through them one by one."""
BATCH = 32
REFERENCE_EMBEDS = 16
"""Passages that the reference's script embeds at once."""
REFERENCE_LINKS = 128


@dataclass(frozen=True)
class Setup:
    """What both sides are made of."""

    checkpoint: str
    passages_path: str
    index_path: str
    passage_encoder: str
    model_type: RagType = "rag_sequence"
    n_docs: int = 5
    target_length: int = TARGET_LENGTH


class Side(Protocol):
    """What is timed. `precision` may change between calls."""

    precision: Precision
    timeline: Timeline

    def settings(self) -> AbstractContextManager[None]:
        """What it changes for its whole process while it works."""

    def step(self, questions: Sequence[str], answers: Sequence[str]) -> float:
        """A training step with its optimiser; the loss per question."""

    def answers(self, questions: Sequence[str], length: int | None = None) -> list[str]:
        """The best answer to each question, found by beam search; of exactly so many tokens where `length` is given."""

    def contexts(self, questions: Sequence[str], vectors: np.ndarray, again: bool) -> torch.Tensor:
        """From question vectors [B, D] to the tokens of all contexts; their passages' ids [B, N].

        `again`: what was kept of an earlier time may be used.
        """

    def build(self, documents: Path) -> np.ndarray:
        """From text to a knowledge source on the disk; its vectors [n, D]."""

    def evaluate(self, questions: Path, answers: Path) -> list[str]:
        """Open the model, answer the questions of a file, write the answers and score them; the answers."""


class Ragstone:
    """This toolkit's side."""

    def __init__(self, setup: Setup) -> None:
        self.precision: Precision = "fp32"
        self.timeline = Timeline()
        self._setup = setup

    @contextmanager
    def settings(self) -> Iterator[None]:
        """As finetune does; eval and build-knowledge, which make no denormal numbers, let them be."""
        with keeping_freed_memory(), flushing_denormals():
            yield

    @cached_property
    def model(self) -> RagModel:
        setup = self._setup
        request = ModelRequest(
            setup.checkpoint,
            model_type=setup.model_type,
            passages_path=setup.passages_path,
            index_path=setup.index_path,
            n_docs=setup.n_docs,
            max_target_length=setup.target_length,
        )
        model = open_model(request)
        assert isinstance(model, RagModel)
        return model

    @cached_property
    def _forgetful(self) -> ContextTokenizer:
        return ContextTokenizer(self.model.generator.tokenizer, kept_tokens=0)

    @cached_property
    def _optimizer(self) -> torch.optim.Optimizer:
        return make_optimizer(self.model, OptimizerSettings(LEARNING_RATE))

    @cached_property
    def passage_encoder(self) -> TextEncoder:
        return load_encoder(self._setup.passage_encoder, "passage").to(best_device())

    def step(self, questions: Sequence[str], answers: Sequence[str]) -> float:
        with self._autocast():
            result = self.model(questions, answers)
        loss = result.loss / len(questions)
        self.timeline.mark("vocabulary")
        loss.backward()
        self.timeline.mark("encoder")
        self._optimizer.step()
        self._optimizer.zero_grad()
        self.timeline.mark("optimiser")
        return loss.item()

    def answers(self, questions: Sequence[str], length: int | None = None) -> list[str]:
        decoding = Decoding(num_beams=BEAMS, min_length=length or 1, max_length=length or MAX_LENGTH)
        with self._autocast():
            found = [answers[0].text for answers in self.model.generate(questions, decoding)]
        self.timeline.mark("search and bookkeeping")
        return found

    @torch.no_grad()
    def log_likelihood(self, question: str, answer: str) -> float:
        """log p(answer|question), the end of the answer included."""
        return -float(self.model([question], [answer]).nll)

    def contexts(self, questions: Sequence[str], vectors: np.ndarray, again: bool) -> torch.Tensor:
        model: Any = self.model
        found = model.finder.retriever.retrieve(vectors, model.n_docs)
        self.timeline.mark("retrieval")
        format_ = model.options.context
        tokenizer = model.generator.context_tokenizer if again else self._forgetful
        tokenizer.ids(format_.texts(found.passages, questions), format_.max_length)
        self.timeline.mark("tokenising")
        return torch.from_numpy(found.ids)

    def build(self, documents: Path) -> np.ndarray:
        with tempfile.TemporaryDirectory() as folder:
            # The kind of index that the reference builds.
            plan = BuildPlan("hnsw", REFERENCE_LINKS, precision=self.precision)
            build_knowledge_source([documents], self.passage_encoder, Path(folder), plan)
            self.timeline.mark("writing and indexing")
            store = PassageStore(Path(folder) / PASSAGES_NAME)
            return store.vectors(np.arange(len(store)))

    def evaluate(self, questions: Path, answers: Path) -> list[str]:
        setup = self._setup
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "predictions.txt"
            eval(
                EvalSettings(
                    evaluation_set=questions,
                    gold_data_path=answers,
                    gold_data_mode="ans",
                    model_name_or_path=setup.checkpoint,
                    model_type=setup.model_type,
                    passages_path=setup.passages_path,
                    index_path=setup.index_path,
                    n_docs=setup.n_docs,
                    eval_batch_size=BATCH,
                    num_beams=BEAMS,
                    max_length=MAX_LENGTH,
                    precision=self.precision,
                    predictions_path=path,
                )
            )
            return path.read_text(encoding="utf-8").splitlines()

    @contextmanager
    def watched(self) -> Iterator[None]:
        """Mark the parts of what is loaded already on `timeline` within the with-block."""
        with ExitStack() as stack:
            # cached_property keeps what it made among the attributes.
            if "model" in vars(self):
                stack.enter_context(watched(self.model, self.timeline))
            if "passage_encoder" in vars(self):
                stack.enter_context(watched_encoder(self.passage_encoder.model, self.timeline))
            yield

    def _autocast(self) -> AbstractContextManager[object]:
        return autocast(best_device(), self.precision)


class Reference:
    """transformers' side, with RagRetriever."""

    def __init__(self, setup: Setup) -> None:
        self.precision: Precision = "fp32"
        self.timeline = Timeline()
        self._setup = setup
        self._asked: tuple[Sequence[str], torch.Tensor] | None = None

    def settings(self) -> AbstractContextManager[None]:
        return nullcontext()

    @cached_property
    def _model(self) -> Any:
        from transformers import RagSequenceForGeneration, RagTokenForGeneration

        setup = self._setup
        kind = RagSequenceForGeneration if setup.model_type == "rag_sequence" else RagTokenForGeneration
        model = kind.from_pretrained(setup.checkpoint, retriever=self._retriever, n_docs=setup.n_docs).eval()
        repair(model, self._question_tokenizer)
        return model.to(best_device())

    @cached_property
    def _retriever(self) -> Any:
        from transformers import RagRetriever

        setup = self._setup
        return RagRetriever.from_pretrained(
            setup.checkpoint,
            index_name="custom",
            passages_path=setup.passages_path,
            index_path=setup.index_path,
            n_docs=setup.n_docs,
        )

    @property
    def _question_tokenizer(self) -> Any:
        return self._retriever.question_encoder_tokenizer

    @cached_property
    def _optimizer(self) -> torch.optim.Optimizer:
        return torch.optim.AdamW(self._model.parameters(), lr=LEARNING_RATE, weight_decay=0.0, fused=True)

    @cached_property
    def passage_encoder(self) -> TextEncoder:
        return load_encoder(self._setup.passage_encoder, "passage").to(best_device())

    def spelled(self, questions: Sequence[str]) -> list[str]:
        """The questions as RagRetriever hands them to the generator."""
        tokenizer = self._question_tokenizer
        return tokenizer.batch_decode(tokenizer(list(questions))["input_ids"], skip_special_tokens=True)

    def step(self, questions: Sequence[str], answers: Sequence[str]) -> float:
        with autocast(best_device(), self.precision):
            loss = self._model(**self._inputs(questions), labels=self._labels(answers), reduce_loss=True).loss
        loss = loss / len(questions)
        loss.backward()
        self._optimizer.step()
        self._optimizer.zero_grad()
        return loss.item()

    @torch.no_grad()
    def answers(self, questions: Sequence[str], length: int | None = None) -> list[str]:
        start = self._model.config.generator.bos_token_id
        with autocast(best_device(), self.precision):
            found = self._model.generate(
                **self._inputs(questions),
                num_beams=BEAMS,
                min_length=length or 1,
                max_length=length or MAX_LENGTH,
                bad_words_ids=None if start is None else [[start, start]],
            )
        tokenizer = self._retriever.generator_tokenizer
        return [text.strip() for text in tokenizer.batch_decode(found, skip_special_tokens=True)]

    def contexts(self, questions: Sequence[str], vectors: np.ndarray, again: bool) -> torch.Tensor:
        # Who has question vectors has their tokens, too.
        if self._asked is None or self._asked[0] != questions:
            self._asked = questions, self._inputs(questions)["input_ids"]
        return self._retriever(self._asked[1], vectors, n_docs=self._setup.n_docs, return_tensors="pt")["doc_ids"]

    def build(self, documents: Path) -> np.ndarray:
        """As the reference's script: datasets' map embeds 16 passages at a time, padded to the longest."""
        import datasets
        import faiss

        datasets.disable_progress_bars()
        encoder = self.passage_encoder
        with documents.open(encoding="utf-8", newline="") as file:
            rows = list(csv.reader(file, delimiter="\t"))
        columns = {"title": [row[0] for row in rows], "text": [row[1] for row in rows]}
        source = datasets.Dataset.from_dict(columns)
        options = {"batched": True, "load_from_cache_file": False}
        source = source.map(_split, **options)
        source = source.map(partial(_embed, encoder, self.precision), batch_size=REFERENCE_EMBEDS, **options)
        with tempfile.TemporaryDirectory() as folder:
            source.save_to_disk(str(Path(folder) / PASSAGES_NAME))
            index = faiss.IndexHNSWFlat(encoder.dimension, REFERENCE_LINKS, faiss.METRIC_INNER_PRODUCT)
            source.add_faiss_index("embeddings", custom_index=index)
            source.get_index("embeddings").save(str(Path(folder) / "index.faiss"))
            source.drop_index("embeddings")
        return np.asarray(source["embeddings"][:], dtype=np.float32)

    def evaluate(self, questions: Path, answers: Path) -> list[str]:
        asked = questions.read_text(encoding="utf-8").splitlines()
        found = [
            text for i in range(0, len(asked), REFERENCE_BATCH) for text in self.answers(asked[i : i + REFERENCE_BATCH])
        ]
        golds = [[line] for line in answers.read_text(encoding="utf-8").splitlines()]
        with tempfile.TemporaryDirectory() as folder:
            (Path(folder) / "predictions.txt").write_text("\n".join(found), encoding="utf-8")
            exact_matches(found, golds)
            f1s(found, golds)
        return found

    def _inputs(self, questions: Sequence[str]) -> dict[str, torch.Tensor]:
        batch = self._question_tokenizer(list(questions), padding=True, return_tensors="pt").to(best_device())
        return {name: batch[name] for name in ("input_ids", "attention_mask")}

    def _labels(self, answers: Sequence[str]) -> torch.Tensor:
        """Targets behind the start token, which these classes expect in front, padded to the longest."""
        config, tokenizer = self._model.config.generator, self._retriever.generator_tokenizer
        tokenizer.padding_side = "right"
        length = self._setup.target_length
        batch = tokenizer(
            text_target=list(answers), truncation=True, max_length=length, padding=True, return_tensors="pt"
        )
        labels = batch["input_ids"]
        start = torch.full((len(labels), 1), config.decoder_start_token_id)
        return torch.cat([start, labels], dim=1).to(best_device())


def _split(documents: dict[str, list[str]]) -> dict[str, list[str]]:
    """Passages of 100 words."""
    titles, texts = [], []
    for title, text in zip(documents["title"], documents["text"], strict=True):
        words = text.split(" ")
        for start in range(0, len(words), 100):
            titles.append(title)
            texts.append(" ".join(words[start : start + 100]).strip())
    return {"title": titles, "text": texts}


@torch.no_grad()
def _embed(encoder: TextEncoder, precision: Precision, passages: dict[str, list[str]]) -> dict[str, np.ndarray]:
    batch = encoder.tokenizer.pad(encoder.token_lists(passages["text"], passages["title"]), return_tensors="pt")
    with autocast(best_device(), precision):
        return {"embeddings": encoder(**batch.to(best_device())).float().cpu().numpy()}


SIDES: dict[str, Callable[[Setup], Side]] = {"reference": Reference, "ragstone": Ragstone}
