"""Question-answer pairs in the reference's layout: a folder with train, val and test .source and .target files."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from ragstone.data.lines import read_filled_lines
from ragstone.errors import InputError
from ragstone.types import Example

Split = Literal["train", "val", "test"]


def read_examples(folder: Path, split: Split, limit: int = -1) -> list[Example]:
    """The examples of a split: line i of split.source is the question, line i of split.target its answer.

    Args:
        folder: the data folder.
        split: train, val or test.
        limit: read only so many examples; all of them where negative.

    Raises:
        InputError: a missing file, an empty line, or files of different length.
    """
    source, target = folder / f"{split}.source", folder / f"{split}.target"
    questions, answers = read_filled_lines(source, "a question"), read_filled_lines(target, "an answer")
    if len(questions) != len(answers):
        raise InputError(
            f"{source} has {len(questions)} lines, but {target} has {len(answers)}; line i of one belongs to line i of "
            "the other."
        )
    examples = [Example(question, answer) for question, answer in zip(questions, answers, strict=True)]
    return examples if limit < 0 else examples[:limit]


def texts_of(examples: Sequence[Example]) -> tuple[list[str], list[str]]:
    """Questions and answers of examples, as two lists."""
    return [example.question for example in examples], [example.answer for example in examples]
