"""ragstone make-almanac: invented documents with questions, on which everything else can be tried."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from ragstone.errors import InputError
from ragstone.output import new_folder
from ragstone.settings import save_settings

LEAST = 520
"""Entities: half for training, at least, and the others for validation and test."""


@dataclass(frozen=True)
class MakeAlmanacSettings:
    output_dir: Path
    """Folder for almanac.tsv, almanac_changed.tsv, retriever.json and data/; new or empty."""
    entities: int = 6000
    """Articles of the almanac."""
    wording: Literal["plain", "other"] = "plain"
    """Wording of the questions; other asks for the same facts in words that plain does not use."""
    seed: int = 7
    """Seed of names, facts and words."""

    def __post_init__(self) -> None:
        refuse_too_few(self.entities)


@dataclass(frozen=True)
class Almanac:
    """What was invented."""

    folder: Path
    articles: int
    trained: int
    """Questions to train on."""
    tested: tuple[str, ...]
    """Questions to test with."""
    answer: str
    """To the first of them."""


def make_almanac(settings: MakeAlmanacSettings) -> Almanac:
    """Invent an almanac: documents, questions with answers, a retriever's data, and the same with other facts."""
    from ragstone.demo.files import write_almanac

    with new_folder(settings.output_dir, "--output_dir") as folder:
        tested = write_almanac(folder, settings.entities, settings.seed, settings.wording)
        save_settings(settings, folder / "almanac.settings.yaml")
        trained = len((folder / "data" / "train.source").read_text(encoding="utf-8").splitlines())
    texts = tuple(question.text for question in tested)
    return Almanac(settings.output_dir, settings.entities, trained, texts, tested[0].answer)


def show(result: Almanac) -> None:
    """Print what was made, with an article and a question."""
    path = result.folder / "almanac.tsv"
    print(f"{path}: {result.articles:,} articles, such as")
    print(path.read_text(encoding="utf-8").split("\n", 1)[0].replace("\t", ": "))
    questions = f"{result.trained:,} questions to train on, {len(result.tested):,} to test with"
    print(f"{result.folder / 'data'}: {questions}, such as")
    print(f"{result.tested[0]} {result.answer}")


def refuse_too_few(entities: int) -> None:
    """Refuse an almanac that would not do for training, validation and test.

    Raises:
        InputError: names the number.
    """
    if entities < LEAST:
        raise InputError(f"--entities is {entities}, but must be at least {LEAST}.")
