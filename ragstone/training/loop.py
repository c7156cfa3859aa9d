"""Fine-tuning: one visible loop over batches of questions and answers, on torch and accelerate.

The loss is the mean over the questions of the global batch of -log p(y|x), label smoothing included.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import torch

from ragstone.errors import InputError
from ragstone.model.decoding import Decoding
from ragstone.model.model import Model
from ragstone.processes.processes import Processes
from ragstone.progress import ProgressBar, progress_bar
from ragstone.training.checkpoints import CheckpointKeeper
from ragstone.training.hardware import prepare
from ragstone.training.monitor import Monitor, as_line
from ragstone.training.optimizer import OptimizerSettings, make_optimizer, make_schedule, restore_schedule
from ragstone.training.order import epoch_batches
from ragstone.training.random_state import random_states, set_random_states
from ragstone.training.resume import Identity
from ragstone.training.together import answer_examples, loss_of_all
from ragstone.types import Example

Score = Callable[[Sequence[str], Sequence[str]], dict[str, float]]
"""Predictions and answers to scores; "em" is what checkpoints are ranked by."""


@dataclass(frozen=True)
class LoopSettings:
    """How long and in what portions."""

    epochs: int = 3
    train_batch_size: int = 32
    """Questions per batch of a process; those of all processes together are one batch of training."""
    eval_batch_size: int = 32
    """Questions per batch of a process."""
    accumulation: int = 1
    """Batches whose gradients are added up for one step."""
    max_grad_norm: float = 1.0
    validation_interval: float = 1.0
    """Up to 1: part of an epoch between validations; above: batches."""
    patience: int = -1
    """Validations in a row without a better score after which training stops; negative: never."""
    seed: int = 42
    """Of the order of examples."""
    max_steps: int = -1
    """Optimiser steps after which training stops; negative: as the epochs say."""


@dataclass(frozen=True)
class Validation:
    """Scores of a validation."""

    step: int
    scores: dict[str, float]
    """In percent."""
    measures: dict[str, float]
    """The monitor's averages over the training batches since the validation before."""
    learning_rate: float
    seconds: float


class Trainer:
    """The state of a run and the loop over it. Knows nothing about files but the checkpoint keeper."""

    def __init__(
        self,
        model: Model,
        accelerator: Any,
        processes: Processes,
        keeper: CheckpointKeeper,
        loop: LoopSettings,
        optimization: OptimizerSettings,
        *,
        train: Sequence[Example],
        validation: Sequence[Example],
        decoding: Decoding,
        score: Score,
        report: Callable[[Validation], None],
        identity: Identity,
        after_step: Callable[[], None] = lambda: None,
    ) -> None:
        """`accelerator` is accelerate's; `processes` train together, each on its part of every batch.

        `report` is told of every validation, `after_step` is called after a step.

        `identity` goes into the state, so that resuming can tell whether it goes on with the same run.
        """
        self.model = model
        self.accelerator = accelerator
        self.processes = processes
        self.keeper = keeper
        self.loop = loop
        self.train_examples = train
        self.validation_examples = validation
        self.decoding = decoding
        self.score = score
        self.report = report
        self.identity = identity
        self.after_step = after_step
        self.batch_size = loop.train_batch_size * processes.place.size
        self.batches_per_epoch = math.ceil(len(train) / self.batch_size)
        self.monitor = Monitor(self.batches_per_epoch, model.corpus_size)
        steps = math.ceil(self.batches_per_epoch / loop.accumulation) * loop.epochs
        self.total_steps = steps if loop.max_steps < 0 else min(steps, loop.max_steps)
        scaled = accelerator.scaler is not None
        optimizer = make_optimizer(model, optimization, scaled)  # type: ignore[arg-type]
        self.schedule = make_schedule(optimizer, optimization, self.total_steps)
        self.wrapped, self.optimizer = prepare(accelerator, model, optimizer)
        self.step = 0
        self.epoch = 0
        self.batch = 0
        self.without_progress = 0

    def run(self) -> None:
        """Train until the epochs, the steps or the patience end."""
        self.model.train()
        self.monitor.restart()
        with progress_bar("Training", self.total_steps) as bar:
            bar.advance(self.step)
            while self.step < self.total_steps and not self._out_of_patience():
                self._run_epoch(bar)
                self.epoch, self.batch = self.epoch + 1, 0

    def state(self) -> dict[str, Any]:
        """All that resuming needs besides the weights. All processes call it; the same for all."""
        return {
            "optimizer": self.optimizer.state_dict(),
            "schedule": self.schedule.state_dict(),
            "scaler": None if self.accelerator.scaler is None else self.accelerator.scaler.state_dict(),
            "rng": self.processes.gather(random_states()),
            "identity": self.identity,
            "position": [self.step, self.epoch, self.batch, self.without_progress],
        }

    def restore(self, state: dict[str, Any]) -> None:
        """Go on from a state, with weights that were loaded with it."""
        self.optimizer.load_state_dict(state["optimizer"])
        restore_schedule(self.schedule, state["schedule"])
        if self.accelerator.scaler is not None and state["scaler"] is not None:
            self.accelerator.scaler.load_state_dict(state["scaler"])
        rank = self.processes.place.rank
        if rank < len(state["rng"]):
            set_random_states(state["rng"][rank])
        else:
            torch.manual_seed(self.loop.seed + rank)
        self.step, self.epoch, self.batch, self.without_progress = state["position"]

    def _run_epoch(self, bar: ProgressBar) -> None:
        loop = self.loop
        batches = epoch_batches(self.train_examples, self.batch_size, loop.seed, self.epoch, self.batch)
        group: list[list[Example]] = []
        for batch in batches:
            group.append(batch)
            self.batch += 1
            if len(group) < loop.accumulation and self.batch < self.batches_per_epoch:
                continue
            self._train_step(group, bar)
            if self._validation_is_due(len(group)) or self.step == self.total_steps:
                self._validate(bar)
            group = []
            if self.step == self.total_steps or self._out_of_patience():
                return

    def _train_step(self, group: list[list[Example]], bar: ProgressBar) -> None:
        """One optimiser step on the batches of a group."""
        questions = sum(map(len, group))
        place = self.processes.place
        for number, batch in enumerate(group):
            # A process that there is no question for takes part with the first one, which then has no weight.
            own = batch[place.rank :: place.size]
            read = own or batch[:1]
            # Gradients are averaged over the processes, and shall be summed over the questions.
            weight = place.size / questions if own else 0.0
            synchronise = number == len(group) - 1
            with nullcontext() if synchronise else self.accelerator.no_sync(self.wrapped):
                with self.accelerator.autocast():
                    loss = self.wrapped([e.question for e in read], [e.answer for e in read])
                whole = loss_of_all(loss, self.processes, counts=bool(own))
                if not torch.isfinite(whole.loss):
                    raise InputError(
                        f"The loss is not finite at step {self.step + 1}; lower --learning_rate, or use --bf16 instead "
                        "of --fp16 (checkpoints up to here are kept)."
                    )
                self.accelerator.backward(loss.loss * weight)
            self.monitor.add(whole)
        if self.loop.max_grad_norm > 0:
            self.accelerator.clip_grad_norm_(self.wrapped.parameters(), self.loop.max_grad_norm)
        self.optimizer.step()
        # The gradient scaler leaves a step out when its scale was too large.
        if not self.accelerator.optimizer_step_was_skipped:
            self.schedule.step()
        self.optimizer.zero_grad(set_to_none=True)
        self.step += 1
        bar.advance()
        self._show(bar)
        self.after_step()

    def _show(self, bar: ProgressBar) -> None:
        measures, learning_rate = self.monitor.measures(), self._learning_rate()
        bar.note(as_line(measures, learning_rate))
        shown = {**measures, "learning_rate": learning_rate}
        self.accelerator.log({f"train/{name}": value for name, value in shown.items()}, step=self.step)
        warning = self.monitor.warning()
        if warning is not None:
            bar.print(warning)

    def _learning_rate(self) -> float:
        return float(self.schedule.get_last_lr()[0])

    def _validation_is_due(self, batches: int) -> bool:
        """Whether the last step, on so many batches, reached or passed a multiple of the interval."""
        interval = self.loop.validation_interval
        every = max(1, round(self.batches_per_epoch * interval)) if interval <= 1 else round(interval)
        seen = self.epoch * self.batches_per_epoch + self.batch
        return seen // every > (seen - batches) // every

    def _validate(self, bar: ProgressBar) -> None:
        began = time.perf_counter()
        self.model.eval()
        predictions = answer_examples(
            self.model,
            self.validation_examples,
            self.decoding,
            self.loop.eval_batch_size,
            self.accelerator,
            self.processes,
        )
        scores = self.score(predictions, [example.answer for example in self.validation_examples])
        self.model.train()
        better = not self.keeper.kept or scores["em"] > self.keeper.best.score
        self.without_progress = 0 if better else self.without_progress + 1
        self.accelerator.log({f"val/{name}": value for name, value in scores.items()}, step=self.step)
        measures, learning_rate = self.monitor.measures(), self._learning_rate()
        shown = "  ".join(f"{name} {value:.2f}" for name, value in scores.items())
        bar.print(f"step {self.step}/{self.total_steps}  {shown}  {as_line(measures, learning_rate)}")
        # Reported before it is saved: a run that is stopped in between goes back to the checkpoint before, and reports
        # this validation again; the other way round it would never.
        self.report(Validation(self.step, scores, measures, learning_rate, time.perf_counter() - began))
        self.keeper.save(self.model, self.step, scores["em"], self.state())
        self.monitor.restart()

    def _out_of_patience(self) -> bool:
        patience = self.loop.patience
        return patience >= 0 and self.without_progress >= max(1, patience)
