"""A fine-tuning run from its data folder to its output folder: train, validate, keep the best, predict the test set.

The output folder holds checkpoint<step>/ for the best three and the last, the links best and last, metrics.json,
test_predictions.txt, and tensorboard/.
"""

from __future__ import annotations

import dataclasses
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from ragstone.data.examples import Split, read_examples
from ragstone.evaluation.score import measure_answers
from ragstone.model.decoding import Decoding
from ragstone.model.open import ModelRequest, open_model
from ragstone.output import refuse_used_folder, write_lines
from ragstone.training.checkpoints import CheckpointKeeper, Saved, load_state
from ragstone.training.hardware import (
    Precision,
    accelerator_for,
    profiled_steps,
    refuse_without_wandb,
    training_device,
)
from ragstone.training.loop import LoopSettings, Trainer, answer_examples
from ragstone.training.metrics_file import MetricsFile
from ragstone.training.optimizer import OptimizerSettings
from ragstone.training.resume import refuse_another_run, run_identity
from ragstone.types import Example

PREDICTIONS_NAME = "test_predictions.txt"


@dataclass(frozen=True)
class RunPlan:
    """All that a run is told."""

    data_dir: Path
    folder: Path
    """Where everything is written."""
    model: ModelRequest
    loop: LoopSettings = field(default_factory=LoopSettings)
    optimization: OptimizerSettings = field(default_factory=OptimizerSettings)
    validation: Decoding = field(default_factory=Decoding)
    test: Decoding = field(default_factory=Decoding)
    limits: Mapping[Split, int] = field(default_factory=dict)
    """Examples to read of a split; all where negative or not given."""
    trains: bool = True
    predicts: bool = False
    resumes: bool = False
    precision: Precision = "no"
    gpus: int | None = None
    wandb: bool = False
    profiles: bool = False
    record: Mapping[str, Any] = field(default_factory=dict)
    """Settings that the trackers show."""
    fixed: Mapping[str, Any] = field(default_factory=dict)
    """Settings, by flag, with which alone the run may be resumed."""


@dataclass(frozen=True)
class Finetuned:
    """What a run gave."""

    folder: Path | None
    """Where it is; None where nothing was kept."""
    steps: int = 0
    """Optimiser steps; 0 if it only predicted."""
    seconds: float = 0.0
    best: Saved | None = None
    test: dict[str, float] = field(default_factory=dict)
    """em and f1 in percent; empty without predictions."""


def run(plan: RunPlan, started: Callable[[], None] = lambda: None) -> Finetuned:
    """Train and predict as `plan` says. `started` is called when the output folder is there and nothing is refused.

    Raises:
        InputError: unusable data, model, knowledge source or hardware; a used output folder.
    """
    _refuse_used_folder(plan)
    device = training_device(plan.gpus, plan.precision)
    if plan.wandb:
        refuse_without_wandb()
    splits: list[Split] = ["train", "val"] if plan.trains else []
    if plan.predicts:
        splits.append("test")
    examples = {split: read_examples(plan.data_dir, split, plan.limits.get(split, -1)) for split in splits}
    trackers = ["tensorboard", *(["wandb"] if plan.wandb else [])] if plan.trains else []
    result = Finetuned(plan.folder)
    with (
        _nothing_without_checkpoint(plan),
        accelerator_for(device, plan.precision, trackers, plan.folder) as accelerator,
    ):
        if plan.trains:
            result = _train(plan, accelerator, examples["train"], examples["val"], started)
        if plan.predicts:
            scores = _predict(plan, accelerator, examples["test"])
            result = dataclasses.replace(result, test=scores)
            if not plan.trains:
                started()
    return result


def fast_dev_run(plan: RunPlan) -> Finetuned:
    """A run over one batch each of training, validation and test data, in a folder that is removed at the end."""
    _refuse_used_folder(plan)
    if plan.wandb:
        refuse_without_wandb()
    has_test = (plan.data_dir / "test.source").is_file()
    loop = plan.loop
    with tempfile.TemporaryDirectory(prefix="ragstone-fast-dev-run-") as name:
        small = dataclasses.replace(
            plan,
            folder=Path(name) / "run",
            loop=dataclasses.replace(loop, epochs=1, max_steps=-1),
            limits={
                "train": loop.train_batch_size * loop.accumulation,
                "val": loop.eval_batch_size,
                "test": loop.eval_batch_size,
            },
            predicts=plan.predicts or has_test,
            wandb=False,
        )
        return dataclasses.replace(run(small), folder=None)


def _train(
    plan: RunPlan, accelerator: Any, train: Sequence[Example], val: Sequence[Example], started: Callable[[], None]
) -> Finetuned:
    began = time.perf_counter()
    state = load_state(plan.folder) if plan.resumes else None
    request = dataclasses.replace(plan.model, device=accelerator.device)
    if state is not None:
        request = _from_checkpoint(request, plan.folder / "last")
    torch.manual_seed(plan.loop.seed)
    model = open_model(request)
    identity = run_identity(plan.fixed, train, val, model.source_fingerprint())
    kept = []
    if state is not None:
        refuse_another_run(state["identity"], identity, plan.folder)
        kept = [Saved(*saved) for saved in state["kept"]]
    plan.folder.mkdir(parents=True, exist_ok=True)
    started()
    metrics = MetricsFile(plan.folder)
    with profiled_steps(plan.folder) if plan.profiles else nullcontext(lambda: None) as after_step:
        trainer = Trainer(
            model,
            accelerator,
            CheckpointKeeper(plan.folder, kept),
            plan.loop,
            plan.optimization,
            train=train,
            validation=val,
            decoding=plan.validation,
            score=_score,
            report=metrics.add_validation,
            identity=identity,
            after_step=after_step,
        )
        if state is not None:
            trainer.restore(state)
            metrics.forget_after(trainer.step)
        accelerator.init_trackers("ragstone", config=dict(plan.record))
        trainer.run()
    model.close()
    return Finetuned(plan.folder, trainer.step, time.perf_counter() - began, trainer.keeper.best)


def _predict(plan: RunPlan, accelerator: Any, test: Sequence[Example]) -> dict[str, float]:
    best = plan.folder / "best"
    request = dataclasses.replace(plan.model, device=accelerator.device)
    if best.is_dir():
        request = _from_checkpoint(request, best)
    model = open_model(request)
    predictions = answer_examples(model, test, plan.test, plan.loop.eval_batch_size, accelerator)
    model.close()
    scores = _score(predictions, [example.answer for example in test])
    plan.folder.mkdir(parents=True, exist_ok=True)
    write_lines(plan.folder / PREDICTIONS_NAME, [" ".join(text.split()) for text in predictions])
    MetricsFile(plan.folder).set_test(scores)
    return scores


def _from_checkpoint(request: ModelRequest, checkpoint: Path) -> ModelRequest:
    """The request for a checkpoint of the run, which has its config and tokenizer with it."""
    return dataclasses.replace(request, name_or_path=str(checkpoint), config_name=None, tokenizer_name=None)


@contextmanager
def _nothing_without_checkpoint(plan: RunPlan) -> Iterator[None]:
    """Empty the folder of a new run that stops before its first checkpoint, so that it can be started again."""
    was_there = plan.folder.is_dir()
    try:
        yield
    except BaseException:
        if plan.trains and not plan.resumes and not (plan.folder / "last").is_dir():
            shutil.rmtree(plan.folder, ignore_errors=True)
            if was_there:
                plan.folder.mkdir()
        raise


def _refuse_used_folder(plan: RunPlan) -> None:
    if plan.trains and not plan.resumes:
        refuse_used_folder(plan.folder, "--output_dir (or --resume to go on with the run in it)")


def _score(predictions: Sequence[str], answers: Sequence[str]) -> dict[str, float]:
    """Means in percent against one answer each."""
    measures = measure_answers(predictions, [(answer,) for answer in answers])
    return {name: 100 * float(values.mean()) for name, values in measures.items()}
