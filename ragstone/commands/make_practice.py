"""ragstone make-practice: question-answer pairs out of the passages themselves, for generators that cannot read yet."""

from __future__ import annotations

import random
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from ragstone.errors import InputError
from ragstone.settings import save_settings

if TYPE_CHECKING:
    from ragstone.types import Example

TRIES = 20
"""Passages that are looked at for one cloze before giving up."""


@dataclass(frozen=True)
class MakePracticeSettings:
    passages_path: Path
    """Knowledge source whose passages are practised on."""
    data_dir: Path
    """Folder for train and val .source and .target, as finetune takes it; new or empty."""
    n_train: int = 20000
    """Examples to train on."""
    n_val: int = 200
    """Examples to validate on, from passages that are not trained on."""
    seed: int = 42
    """Seed of the choice of passages and phrases."""

    def __post_init__(self) -> None:
        for name in ("n_train", "n_val"):
            if getattr(self, name) < 1:
                raise InputError(f"--{name} is {getattr(self, name)}, but must be at least 1.")


@dataclass(frozen=True)
class Practice:
    """The practice that was made."""

    folder: Path
    train: int
    val: int
    sample: Example


def make_practice(settings: MakePracticeSettings) -> Practice:
    """Make cloze questions from a knowledge source's passages, to practise reading before fine-tuning."""
    from ragstone.data.cloze import make_cloze
    from ragstone.knowledge.source import KnowledgeSource
    from ragstone.output import new_folder, refuse_used_folder, write_lines
    from ragstone.progress import progress_bar

    refuse_used_folder(settings.data_dir, "--data_dir")
    source = KnowledgeSource(settings.passages_path)
    chooser = random.Random(settings.seed)
    rows = list(range(len(source)))
    chooser.shuffle(rows)
    held_out = max(1, min(len(rows) // 2, settings.n_val))
    splits = {"val": (rows[:held_out], settings.n_val), "train": (rows[held_out:] or rows, settings.n_train)}
    examples: dict[str, list[Example]] = {}
    with progress_bar("Making questions", settings.n_val + settings.n_train) as bar:
        for split, (those, wanted) in splits.items():
            found: list[Example] = []
            for attempt in range(TRIES * wanted):
                if len(found) == wanted:
                    break
                # Every passage once before any comes again.
                cloze = make_cloze(source.store.passages([those[attempt % len(those)]])[0], chooser)
                if cloze is not None:
                    found.append(cloze)
                    bar.advance()
            if len(found) < wanted:
                raise InputError(
                    f"The passages of {settings.passages_path} are too short to make {wanted} questions of; lower "
                    f"--n_{split}, or build the source with more --max_words."
                )
            examples[split] = found
    with new_folder(settings.data_dir, "--data_dir") as folder:
        for split, found in examples.items():
            write_lines(folder / f"{split}.source", [example.question for example in found])
            write_lines(folder / f"{split}.target", [example.answer for example in found])
        save_settings(settings, folder / "settings.yaml")
    return Practice(settings.data_dir, settings.n_train, settings.n_val, examples["train"][0])


def show(result: Practice) -> None:
    """Print what was made."""
    print(f"practice    {result.folder}: {result.train:,} questions to train on, {result.val:,} to validate on")
    print(f"such as     {result.sample.question}  ->  {result.sample.answer}")
