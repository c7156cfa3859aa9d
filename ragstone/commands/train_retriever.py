"""ragstone train-retriever: a question encoder and a passage encoder from DPR's data."""

from __future__ import annotations

import dataclasses
import json
import math
import random
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from ragstone.arithmetic import Precision
from ragstone.errors import InputError
from ragstone.importing import importing
from ragstone.output import new_folder
from ragstone.settings import save_settings

if TYPE_CHECKING:
    from ragstone.data.dpr import RetrieverExample
    from ragstone.encoders.pair import EncoderPair
    from ragstone.training.retriever import RetrieverRecord


FRESH_SIZES = {"hidden_size": 128, "num_layers": 1, "num_heads": 4, "vocab_size": 8192}
"""How large a fresh encoder is where nothing else is asked for."""


@dataclass(frozen=True)
class TrainRetrieverSettings:
    train_path: list[Path]
    """DPR's retriever data: JSON, plain or gzipped; one file or several."""
    output_dir: Path
    """Folder for question_encoder/, passage_encoder/ and metrics.json; new or empty."""
    dev_path: list[Path] | None = None
    """Held-out data in the same format."""
    held_out: float = 0.05
    """Fraction of the training data to hold out if --dev_path is not given; 0 for none."""
    encoder_name_or_path: str | None = None
    """Encoder that both sides start from: folder or hub name. If no encoder is given, a small fresh one is made."""
    question_encoder_name_or_path: str | None = None
    """Encoder that questions start from, with --passage_encoder_name_or_path."""
    passage_encoder_name_or_path: str | None = None
    """Encoder that passages start from, with --question_encoder_name_or_path."""
    allow_new_weights: bool = False
    """Accept an encoder some of whose weights are newly initialised."""
    hidden_size: int | None = None
    """Dimensions of a fresh encoder; 128 by default."""
    num_layers: int | None = None
    """Layers of a fresh encoder; 1 by default."""
    num_heads: int | None = None
    """Attention heads of a fresh encoder; 4 by default."""
    vocab_size: int | None = None
    """Word pieces that a fresh encoder's tokenizer learns at most; 8192 by default."""
    shared: bool = False
    """Use one encoder for both questions and passages."""
    pooling: Literal["cls", "mean", "last"] | None = None
    """How one vector is made from the tokens; default: as the encoder says, else cls, or mean for a fresh encoder."""
    normalize: bool | None = None
    """Scale vectors to length one; as the encoder says by default."""
    max_length: int | None = None
    """Tokens after which a text is cut; by default, as many as the encoder can read."""
    batch_size: int = 32
    """Questions per batch, whose passages are each other's negatives."""
    micro_batch_size: int | None = None
    """Texts held in memory at once (gradient caching); the whole batch by default."""
    num_hard_negatives: int = 1
    """Hard negatives per question."""
    learning_rate: float | None = None
    """Highest learning rate; 2e-5 by default, 1e-3 for a fresh encoder."""
    num_train_epochs: int = 10
    """Passes over the training data."""
    max_steps: int | None = None
    """Training steps, instead of --num_train_epochs."""
    warmup_steps: int = 0
    """Steps over which the learning rate rises; then it falls linearly to zero."""
    temperature: float | None = None
    """Scores are divided by this; 1 by default, 0.05 if vectors have length one."""
    precision: Precision = "auto"
    """Arithmetic; auto is bf16 where the hardware has it."""
    eval_steps: int | None = None
    """Steps between evaluations on held-out data; one epoch by default."""
    num_proc: int | None = None
    """CPU threads; all by default."""
    seed: int = 42
    """Seed of the order, dropout, the held-out part and fresh weights."""

    def __post_init__(self) -> None:
        least = {"num_hard_negatives": 0, "warmup_steps": 0, "seed": 0, "batch_size": 1, "num_train_epochs": 1}
        optional = ("micro_batch_size", "max_steps", "eval_steps", "num_proc", "max_length", *FRESH_SIZES)
        for name, smallest in (least | dict.fromkeys(optional, 1)).items():
            if getattr(self, name) is not None and getattr(self, name) < smallest:
                raise InputError(f"--{name} is {getattr(self, name)}, but must be at least {smallest}.")
        for name in ("learning_rate", "temperature"):
            if getattr(self, name) is not None and not getattr(self, name) > 0:
                raise InputError(f"--{name} is {getattr(self, name)}, but must be above 0.")
        if not 0 <= self.held_out < 1:
            raise InputError(f"--held_out is {self.held_out}, but must be at least 0 and below 1.")
        if self.batch_size == 1 and not self.num_hard_negatives:
            raise InputError("--batch_size 1 with --num_hard_negatives 0 leaves a question no negatives; raise either.")
        self._check_encoders()

    @property
    def fresh(self) -> bool:
        """Whether the encoders start without pretraining."""
        return self.encoder_name_or_path is None and self.question_encoder_name_or_path is None

    def _check_encoders(self) -> None:
        question, passage = self.question_encoder_name_or_path, self.passage_encoder_name_or_path
        if (question is None) != (passage is None):
            raise InputError(
                "--question_encoder_name_or_path and --passage_encoder_name_or_path need each other; to start both "
                "sides from one encoder, give --encoder_name_or_path."
            )
        if question is not None and (self.encoder_name_or_path is not None or self.shared):
            raise InputError(
                "Two encoders are given; leave out --encoder_name_or_path and --shared, which mean that there is one."
            )
        for name in FRESH_SIZES:
            if not self.fresh and getattr(self, name) is not None:
                raise InputError(f"--{name} is for a fresh encoder; leave out either it or the encoder's name.")
        sizes = self.fresh_sizes()
        if self.fresh and sizes["hidden_size"] % sizes["num_heads"]:
            raise InputError(
                f"--hidden_size {sizes['hidden_size']} must be a multiple of --num_heads {sizes['num_heads']}."
            )

    def fresh_sizes(self) -> dict[str, Any]:
        """How large a fresh encoder is to be."""
        return {name: getattr(self, name) or usual for name, usual in FRESH_SIZES.items()}


@dataclass(frozen=True)
class TrainedRetriever:
    """What training gave."""

    folder: Path
    train_questions: int
    held_out_questions: int
    records: list[RetrieverRecord]
    """One per evaluation."""
    best: RetrieverRecord
    """The one whose weights were kept."""
    seconds: float

    def metrics(self) -> dict[str, Any]:
        """Everything that was measured, for metrics.json."""
        return {name: value for name, value in dataclasses.asdict(self).items() if name != "folder"}


def train_retriever(settings: TrainRetrieverSettings) -> TrainedRetriever:
    """Fit a question encoder and a passage encoder to DPR's data, with in-batch and hard negatives."""
    began = time.perf_counter()
    with importing():
        from ragstone.index.threads import threads

    with new_folder(settings.output_dir, "--output_dir") as folder, threads(settings.num_proc):
        train, held_out = _read(settings)

        with importing():
            from ragstone.encoders.precision import autocast, best_device
            from ragstone.training.optimizer import OptimizerSettings
            from ragstone.training.retriever import RetrieverPlan, best_record, train_encoders

        device = best_device()
        # Asked for early: an arithmetic that the device does not have is refused before a model is loaded.
        autocast(device, settings.precision)
        pair = _encoders(settings, train)
        steps = settings.num_train_epochs * math.ceil(len(train) / settings.batch_size)
        plan = RetrieverPlan(
            max_steps=settings.max_steps or steps,
            batch_size=settings.batch_size,
            micro_batch_size=settings.micro_batch_size,
            optimization=OptimizerSettings(
                learning_rate=settings.learning_rate or (1e-3 if settings.fresh else 2e-5),
                warmup_steps=settings.warmup_steps,
            ),
            temperature=settings.temperature or (0.05 if pair.question.settings.normalize else 1.0),
            precision=settings.precision,
            seed=settings.seed,
            eval_steps=settings.eval_steps,
        )
        records = train_encoders(pair.question.to(device), pair.passage.to(device), train, held_out, plan)
        pair.save(folder)
        seconds = time.perf_counter() - began
        best = best_record(records)
        trained = TrainedRetriever(settings.output_dir, len(train), len(held_out), records, best, seconds)
        (folder / "metrics.json").write_text(json.dumps(trained.metrics(), indent=2) + "\n", encoding="utf-8")
        resolved = dataclasses.replace(
            settings,
            max_steps=plan.max_steps,
            learning_rate=plan.optimization.learning_rate,
            temperature=plan.temperature,
            **(settings.fresh_sizes() if settings.fresh else {}),
        )
        save_settings(resolved, folder / "settings.yaml")
    return trained


def show(result: TrainedRetriever) -> None:
    """Print how well questions find their passages."""
    print(f"retriever   {result.folder / 'question_encoder'}, {result.folder / 'passage_encoder'}")
    print(f"questions   {result.train_questions:,} to train on, {result.held_out_questions:,} held out")
    print(f"kept        {result.best.line()}")
    print(f"time        {result.seconds:,.1f} s for {result.records[-1].step:,} steps")


def _read(settings: TrainRetrieverSettings) -> tuple[list[RetrieverExample], list[RetrieverExample]]:
    """Training and held-out examples."""
    from ragstone.data.dpr import read_retriever_examples

    train = list(read_retriever_examples(settings.train_path, settings.num_hard_negatives))
    held_out: list[RetrieverExample] = []
    if settings.dev_path is not None:
        held_out = list(read_retriever_examples(settings.dev_path, settings.num_hard_negatives))
        if not held_out:
            raise InputError(
                f"--dev_path {_listed(settings.dev_path)} has no entries to evaluate on; give files that have some, or "
                "--held_out instead."
            )
    elif settings.held_out and len(train) > 1:
        random.Random(settings.seed).shuffle(train)
        count = max(1, round(settings.held_out * len(train)))
        held_out, train = train[:count], train[count:]
    passages = {context for example in train for context in (example.positive, *example.hard_negatives)}
    if len(passages) < 2:
        raise InputError(
            f"--train_path {_listed(settings.train_path)} leaves {len(passages)} different passage(s) to train on; a "
            "retriever needs at least 2 to tell apart."
        )
    return train, held_out


def _encoders(settings: TrainRetrieverSettings, train: Sequence[RetrieverExample]) -> EncoderPair:
    from ragstone.encoders.pair import fresh_pair, load_pair

    options: dict[str, Any] = {
        "shared": settings.shared,
        "pooling": settings.pooling,
        "max_length": settings.max_length,
    }
    question = settings.encoder_name_or_path or settings.question_encoder_name_or_path
    passage = settings.encoder_name_or_path or settings.passage_encoder_name_or_path
    if question is not None and passage is not None:
        options |= {"normalize": settings.normalize, "allow_new_weights": settings.allow_new_weights}
        return load_pair(question, passage, **options)
    contexts = {context for example in train for context in (example.positive, *example.hard_negatives)}
    texts = [example.question for example in train]
    texts += [f"{title} {text}" for title, text in sorted(contexts)]
    return fresh_pair(
        texts, **options, normalize=bool(settings.normalize), **settings.fresh_sizes(), seed=settings.seed
    )


def _listed(paths: Sequence[Path]) -> str:
    return " ".join(map(str, paths))
