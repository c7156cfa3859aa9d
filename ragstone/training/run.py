"""A fine-tuning run from its data folder to its output folder: train, validate, keep the best, predict the test set.

The output folder holds checkpoint<step>/ for the best three and the last, the links best and last, metrics.json,
test_predictions.txt, and tensorboard/.
"""

from __future__ import annotations

import dataclasses
import shutil
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch

from ragstone.allocation import give_freed_memory_back, keeping_freed_memory
from ragstone.arithmetic import MixedPrecision
from ragstone.data.examples import Split, read_examples
from ragstone.denormals import flushing_denormals
from ragstone.evaluation.score import measure_answers
from ragstone.model.decoding import Decoding
from ragstone.model.open import ModelRequest, open_model
from ragstone.output import refuse_used_folder, write_lines
from ragstone.processes.environment import place
from ragstone.processes.group import joined
from ragstone.processes.processes import Processes
from ragstone.progress import silence
from ragstone.retrieval.choice import RetrievalSettings, connected, retrieval_backend
from ragstone.training.agreement import refuse_unlike_examples, refuse_unlike_flags, refuse_unseen_folder
from ragstone.training.checkpoints import CheckpointKeeper, Saved, load_state
from ragstone.training.hardware import accelerator_for, profiled_steps, release, training_device
from ragstone.training.loop import LoopSettings, Trainer
from ragstone.training.metrics_file import MetricsFile
from ragstone.training.optimizer import OptimizerSettings
from ragstone.training.resume import refuse_another_run, run_identity
from ragstone.training.together import answer_examples
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
    precision: MixedPrecision = "no"
    gpus: int | None = None
    """GPUs of this host; 0 trains on the CPU."""
    retrieval: RetrievalSettings = field(default_factory=RetrievalSettings)
    timeout: float = 600.0
    """Seconds in which processes and retrieval workers must answer each other."""
    wandb: bool = False
    profiles: bool = False
    record: Mapping[str, Any] = field(default_factory=dict)
    """Settings that the trackers show."""
    fixed: Mapping[str, Any] = field(default_factory=dict)
    """Settings, by flag, with which alone the run may be resumed."""
    shared: Mapping[str, Any] = field(default_factory=dict)
    """Settings, by flag, that all processes must have been given alike."""


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
    """Train and predict as `plan` says. With several processes, all call it and get the same result.

    `started` is called, in the first process, when the output folder is there and nothing is refused.

    Raises:
        InputError: unusable data, model or knowledge source; a used output folder.
        LostError: a process or a retrieval worker has gone.
    """
    with _together(plan) as team:
        return _run(plan, team, started)


def fast_dev_run(plan: RunPlan) -> Finetuned:
    """A run over one batch each of training, validation and test data, in a folder that is removed at the end."""
    has_test = (plan.data_dir / "test.source").is_file()
    loop = plan.loop
    with _together(plan) as team:
        team.processes.on_first(lambda: _refuse_used_folder(plan))
        size = team.processes.place.size
        small = dataclasses.replace(
            plan,
            loop=dataclasses.replace(loop, epochs=1, max_steps=-1),
            limits={
                "train": loop.train_batch_size * loop.accumulation * size,
                "val": loop.eval_batch_size * size,
                "test": loop.eval_batch_size * size,
            },
            predicts=plan.predicts or has_test,
            wandb=False,
        )
        # Beside the output folder, where all hosts see it.
        beside = next(path for path in plan.folder.resolve().parents if path.is_dir())
        with ExitStack() as stack:
            name = team.processes.on_first(
                lambda: stack.enter_context(TemporaryDirectory(prefix=".ragstone-fast-dev-run-", dir=beside))
            )
            result = _run(dataclasses.replace(small, folder=Path(name) / "run"), team, lambda: None)
            # Nobody removes what another still reads.
            team.processes.share(None)
    return dataclasses.replace(result, folder=None)


@dataclass(frozen=True)
class _Team:
    """Who trains, and on what."""

    processes: Processes
    device: torch.device


@contextmanager
def _together(plan: RunPlan) -> Iterator[_Team]:
    """The processes of the run. All but the first keep silent."""
    device = training_device(plan.gpus, place().local_rank)
    with (
        keeping_freed_memory(),
        flushing_denormals(),
        joined(device, plan.timeout) as processes,
        nullcontext() if processes.place.is_first else silence(),
    ):
        # What they do together from here on depends on the flags.
        refuse_unlike_flags({**plan.shared, "gpus": device.type}, processes)
        with connected(plan.retrieval, processes):
            yield _Team(processes, device)


def _run(plan: RunPlan, team: _Team, started: Callable[[], None]) -> Finetuned:
    team.processes.on_first(lambda: _refuse_used_folder(plan))
    splits: list[Split] = ["train", "val"] if plan.trains else []
    if plan.predicts:
        splits.append("test")
    examples = {split: read_examples(plan.data_dir, split, plan.limits.get(split, -1)) for split in splits}
    refuse_unlike_examples(examples, team.processes)
    trackers = ["tensorboard", *(["wandb"] if plan.wandb else [])] if plan.trains else []
    result = Finetuned(plan.folder)
    with (
        _nothing_without_checkpoint(plan, team.processes),
        accelerator_for(team.device, plan.precision, trackers, plan.folder) as accelerator,
    ):
        if plan.trains:
            result = _train(plan, team.processes, accelerator, examples["train"], examples["val"], started)
            # The model that answers is opened anew, and the trained one would stay beside it with its optimiser.
            release(accelerator)
            give_freed_memory_back()
        if plan.predicts:
            scores = _predict(plan, team.processes, accelerator, examples["test"])
            result = dataclasses.replace(result, test=scores)
            if not plan.trains:
                team.processes.on_first(started)
    return result


def _train(
    plan: RunPlan,
    processes: Processes,
    accelerator: Any,
    train: Sequence[Example],
    val: Sequence[Example],
    started: Callable[[], None],
) -> Finetuned:
    began = time.perf_counter()
    first = processes.place.is_first
    if plan.resumes and processes.on_first(plan.folder.is_dir):
        refuse_unseen_folder(plan.folder, processes)
    state = load_state(plan.folder) if plan.resumes else None
    request = _request(plan, processes, accelerator)
    if state is not None:
        request = _from_checkpoint(request, plan.folder / "last")
    # Each process draws dropout of its own.
    torch.manual_seed(plan.loop.seed + processes.place.rank)
    model = open_model(request)
    batch_size = plan.loop.train_batch_size * processes.place.size
    identity = run_identity(
        {**plan.fixed, "train_batch_size x processes": batch_size}, train, val, model.source_fingerprint()
    )
    kept = []
    if state is not None:
        refuse_another_run(state["identity"], identity, plan.folder)
        kept = [Saved(*saved) for saved in state["kept"]]
    processes.on_first(lambda: _start(plan.folder, started))
    refuse_unseen_folder(plan.folder, processes)
    metrics = MetricsFile(plan.folder)
    with profiled_steps(plan.folder) if plan.profiles and first else nullcontext(lambda: None) as after_step:
        trainer = Trainer(
            model,
            accelerator,
            processes,
            CheckpointKeeper(plan.folder, kept, writes=first),
            plan.loop,
            plan.optimization,
            train=train,
            validation=val,
            decoding=plan.validation,
            score=_score,
            report=metrics.add_validation if first else lambda _: None,
            identity=identity,
            after_step=after_step,
        )
        if state is not None:
            trainer.restore(state)
            # On a GPU, the optimiser has a copy of its own.
            state = None
            metrics.forget_after(trainer.step)
        # Weights & Biases would keep its files in the working directory.
        beside = {"wandb": {"dir": str(plan.folder)}}
        # TensorBoard takes no lists.
        shown = {name: str(value) if isinstance(value, list) else value for name, value in plan.record.items()}
        accelerator.init_trackers("ragstone", config=shown, init_kwargs=beside)
        trainer.run()
    # The last checkpoint is there before anybody goes on.
    processes.share(None)
    model.close()
    return Finetuned(plan.folder, trainer.step, time.perf_counter() - began, trainer.keeper.best)


def _predict(plan: RunPlan, processes: Processes, accelerator: Any, test: Sequence[Example]) -> dict[str, float]:
    best = plan.folder / "best"
    request = _request(plan, processes, accelerator)
    if processes.on_first(best.is_dir):
        refuse_unseen_folder(plan.folder, processes)
        request = _from_checkpoint(request, best)
    model = open_model(request)
    predictions = answer_examples(model, test, plan.test, plan.loop.eval_batch_size, accelerator, processes)
    model.close()
    scores = _score(predictions, [example.answer for example in test])

    def write() -> None:
        plan.folder.mkdir(parents=True, exist_ok=True)
        write_lines(plan.folder / PREDICTIONS_NAME, [" ".join(text.split()) for text in predictions])
        MetricsFile(plan.folder).set_test(scores)

    processes.on_first(write)
    return scores


def _request(plan: RunPlan, processes: Processes, accelerator: Any) -> ModelRequest:
    backend = retrieval_backend(plan.retrieval, processes, plan.timeout)
    return dataclasses.replace(plan.model, device=accelerator.device, retrieval=backend)


def _start(folder: Path, started: Callable[[], None]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    started()


def _from_checkpoint(request: ModelRequest, checkpoint: Path) -> ModelRequest:
    """The request for a checkpoint of the run, which has its config and tokenizer with it."""
    return dataclasses.replace(request, name_or_path=str(checkpoint), config_name=None, tokenizer_name=None)


@contextmanager
def _nothing_without_checkpoint(plan: RunPlan, processes: Processes) -> Iterator[None]:
    """Empty the folder of a new run that stops before its first checkpoint, so that it can be started again."""
    # A look of the others, before the first makes it, would stay in the memory of a network's file system.
    was_there = processes.place.is_first and plan.folder.is_dir()
    try:
        yield
    except BaseException:
        mine = processes.place.is_first and plan.trains
        if mine and not plan.resumes and not (plan.folder / "last").is_dir():
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
