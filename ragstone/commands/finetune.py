"""ragstone finetune: question encoder and generator trained together on question-answer pairs (finetune_rag.py)."""

from __future__ import annotations

import os
import sys
from contextlib import nullcontext
from typing import TYPE_CHECKING

from ragstone.commands.finetune_settings import FinetuneSettings
from ragstone.importing import importing
from ragstone.processes.environment import place, refuse_other_training
from ragstone.settings import save_settings

if TYPE_CHECKING:
    from ragstone.training.run import Finetuned


def finetune(settings: FinetuneSettings) -> Finetuned:
    """Train question encoder and generator together on questions and answers.

    Starts further processes where the settings ask for them. Within processes that torchrun or accelerate started,
    trains with those; each gets the same result.
    """
    refuse_other_training()
    with importing() if place().is_first else nullcontext():
        from ragstone.commands.finetune_plan import placement_request
        from ragstone.processes.launch import launch
        from ragstone.training.hardware import refuse_without_wandb
        from ragstone.training.placement import plan_placement

    placement = plan_placement(placement_request(settings), place())
    if settings.logger_name == "wandb":
        refuse_without_wandb()
    if place().is_first:
        print(placement.text, file=sys.stderr)
    if place().is_first and placement.warning is not None:
        print(f"ragstone finetune: {placement.warning}", file=sys.stderr)
    if placement.starts:
        port = None if settings.distributed_port == -1 else settings.distributed_port
        return launch(_finetune, settings, placement.processes, port)
    return _finetune(settings)


def _finetune(settings: FinetuneSettings) -> Finetuned:
    """What each process does."""
    # Read by the tokenizers' thread pool when it starts.
    os.environ.setdefault("RAYON_NUM_THREADS", str(max(1, settings.num_workers)))
    from ragstone.commands.finetune_plan import run_plan
    from ragstone.training.run import fast_dev_run, run

    plan = run_plan(settings)
    if settings.fast_dev_run:
        return fast_dev_run(plan)
    # Beside a run, what its test answers were made with must not replace what it was trained with.
    name = "settings.yaml" if plan.trains else "test_settings.yaml"
    return run(plan, started=lambda: save_settings(settings, settings.output_dir / name))


def show(result: Finetuned) -> None:
    """Print where the run ended; once, however many processes it had."""
    if not place().is_first:
        return
    print(f"output       {result.folder or 'none: a run for trying out, all parts of which worked'}")
    if result.best is not None:
        print(f"steps        {result.steps:,} in {result.seconds:,.1f} s")
        print(f"best         {result.best.name}: exact match {result.best.score:.2f} on the validation questions")
    for name, value in result.test.items():
        print(f"test {name:<7} {value:.2f}")
