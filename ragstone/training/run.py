"""A fine-tuning run from its data folder to its output folder: train, validate, keep the best, predict the test set.

The output folder holds checkpoint<step>/ for the best three and the last, the links best and last, metrics.json (a
record per validation under "val", the test scores under "test"), test_predictions.txt, and tensorboard/.
"""

from __future__ import annotations

import dataclasses
import json
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch

from ragstone.data.examples import Split, read_examples
from ragstone.encoders.precision import best_device
from ragstone.errors import InputError
from ragstone.evaluation.score import measure_answers
from ragstone.model.decoding import Decoding
from ragstone.model.open import ModelRequest, open_model
from ragstone.output import refuse_used_folder, write_lines, write_text
from ragstone.training.checkpoints import CheckpointKeeper, Saved, load_state
from ragstone.training.loop import LoopSettings, Trainer, Validation, answer_examples
from ragstone.training.optimizer import OptimizerSettings
from ragstone.types import Example

METRICS_NAME = "metrics.json"
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
    precision: Literal["no", "bf16", "fp16"] = "no"
    """In the words of accelerate."""
    gpus: int | None = None
    wandb: bool = False
    profiles: bool = False
    record: Mapping[str, Any] = field(default_factory=dict)
    """Settings that the trackers show."""


@dataclass(frozen=True)
class Finetuned:
    """What a run gave."""

    folder: Path
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
    device = _device(plan)
    splits: list[Split] = ["train", "val"] if plan.trains else []
    if plan.predicts:
        splits.append("test")
    examples = {split: read_examples(plan.data_dir, split, plan.limits.get(split, -1)) for split in splits}
    result = Finetuned(plan.folder)
    with _accelerator(plan, device) as accelerator:
        if plan.trains:
            result = _train(plan, accelerator, examples["train"], examples["val"], started)
        if plan.predicts:
            scores = _predict(plan, accelerator, examples["test"])
            result = dataclasses.replace(result, test=scores)
    return result


def fast_dev_run(plan: RunPlan) -> Finetuned:
    """A run over one batch each of training, validation and test data, in a folder that is removed at the end."""
    _refuse_used_folder(plan)
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
        )
        return dataclasses.replace(run(small), folder=plan.folder)


def _train(
    plan: RunPlan, accelerator: Any, train: Sequence[Example], val: Sequence[Example], started: Callable[[], None]
) -> Finetuned:
    began = time.perf_counter()
    state = load_state(plan.folder) if plan.resumes else None
    request = dataclasses.replace(plan.model, device=accelerator.device)
    if state is not None:
        request = dataclasses.replace(request, name_or_path=str(plan.folder / "last"), config_name=None)
    torch.manual_seed(plan.loop.seed)
    model = open_model(request)
    plan.folder.mkdir(parents=True, exist_ok=True)
    started()
    metrics = _Metrics(plan.folder, keep_until=-1 if state is None else state["position"][0])
    keeper = CheckpointKeeper(plan.folder, None if state is None else [Saved(*kept) for kept in state["kept"]])
    with _profiler(plan) as profiler:
        trainer = Trainer(
            model,
            accelerator,
            keeper,
            plan.loop,
            plan.optimization,
            train=train,
            validation=val,
            decoding=plan.validation,
            score=_score,
            report=metrics.add_validation,
            after_step=profiler,
        )
        if state is not None:
            trainer.restore(state)
        accelerator.init_trackers("ragstone", config=dict(plan.record))
        trainer.run()
    model.close()
    return Finetuned(plan.folder, trainer.step, time.perf_counter() - began, keeper.best)


def _predict(plan: RunPlan, accelerator: Any, test: Sequence[Example]) -> dict[str, float]:
    best = plan.folder / "best"
    request = dataclasses.replace(plan.model, device=accelerator.device)
    if best.is_dir():
        request = dataclasses.replace(request, name_or_path=str(best), config_name=None)
    model = open_model(request)
    predictions = answer_examples(model, test, plan.test, plan.loop.eval_batch_size, accelerator)
    model.close()
    scores = _score(predictions, [example.answer for example in test])
    plan.folder.mkdir(parents=True, exist_ok=True)
    write_lines(plan.folder / PREDICTIONS_NAME, [" ".join(text.split()) for text in predictions])
    _Metrics(plan.folder).set_test(scores)
    return scores


def _score(predictions: Sequence[str], answers: Sequence[str]) -> dict[str, float]:
    """Means in percent against one answer each."""
    measures = measure_answers(predictions, [(answer,) for answer in answers])
    return {name: 100 * float(values.mean()) for name, values in measures.items()}


class _Metrics:
    """metrics.json, written anew and whole whenever something is added."""

    def __init__(self, folder: Path, keep_until: int | None = None) -> None:
        """Read what is there; with `keep_until`, only the validations up to that step."""
        self._path = folder / METRICS_NAME
        self._values: dict[str, Any] = {"val": []}
        if self._path.is_file():
            self._values = json.loads(self._path.read_text(encoding="utf-8"))
        if keep_until is not None:
            self._values = {"val": [r for r in self._values["val"] if r["step_count"] <= keep_until]}

    def add_validation(self, validation: Validation) -> None:
        record = {f"val_avg_{name}": round(value, 4) for name, value in validation.scores.items()}
        measures = {name: round(value, 6) for name, value in validation.measures.items()}
        seconds = round(validation.seconds, 2)
        self._values["val"].append({"step_count": validation.step, **record, **measures, "val_seconds": seconds})
        self._write()

    def set_test(self, scores: Mapping[str, float]) -> None:
        self._values["test"] = {f"test_avg_{name}": round(value, 4) for name, value in scores.items()}
        self._write()

    def _write(self) -> None:
        write_text(self._path, json.dumps(self._values, indent=2) + "\n")


def _refuse_used_folder(plan: RunPlan) -> None:
    if plan.trains and not plan.resumes:
        refuse_used_folder(plan.folder, "--output_dir (or --resume to go on with the run in it)")


def _device(plan: RunPlan) -> torch.device:
    wanted, there = plan.gpus, torch.cuda.device_count()
    if wanted is not None and wanted > there:
        raise InputError(f"--gpus {wanted}: this machine has {there} GPUs that torch can use; give at most that.")
    if wanted is not None and wanted > 1:
        raise InputError(f"--gpus {wanted}: training runs in one process, on one GPU; give --gpus 1.")
    device = torch.device("cpu") if wanted == 0 else best_device()
    if plan.precision == "fp16" and device.type == "cpu":
        raise InputError("--fp16 needs a GPU; on a CPU take --bf16, or leave the precision alone.")
    return device


@contextmanager
def _accelerator(plan: RunPlan, device: torch.device) -> Iterator[Any]:
    """accelerate's Accelerator with the trackers that are wanted, in a state of its own."""
    from accelerate import Accelerator
    from accelerate.state import AcceleratorState
    from accelerate.utils import ProjectConfiguration

    trackers = ["tensorboard"]
    if plan.wandb:
        try:
            import wandb  # noqa: F401 - only to see that it is there
        except ImportError as error:
            raise InputError("--logger_name wandb needs Weights & Biases: pip install 'ragstone[wandb]'.") from error
        trackers.append("wandb")
    # The state is one per process and keeps the first run's precision; a second run must not inherit it.
    AcceleratorState._reset_state(reset_partial_state=True)
    accelerator = Accelerator(
        mixed_precision=plan.precision,
        cpu=device.type == "cpu",
        log_with=trackers if plan.trains else None,
        project_config=ProjectConfiguration(str(plan.folder), str(plan.folder / "tensorboard")),
    )
    try:
        yield accelerator
    finally:
        accelerator.end_training()
        AcceleratorState._reset_state(reset_partial_state=True)


@contextmanager
def _profiler(plan: RunPlan) -> Iterator[Callable[[], None]]:
    """What to call after each step so that steps 3 to 7 are recorded; nothing unless asked for."""
    if not plan.profiles:
        yield lambda: None
        return
    from torch.profiler import profile, schedule

    def write(profiler: Any) -> None:
        table = profiler.key_averages().table(sort_by="self_cpu_time_total", row_limit=40)
        write_text(plan.folder / "profile.txt", table + "\n")
        profiler.export_chrome_trace(str(plan.folder / "profile.json"))

    with profile(schedule=schedule(wait=1, warmup=1, active=5, repeat=1), on_trace_ready=write) as profiler:
        yield profiler.step
