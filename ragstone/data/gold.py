"""What an evaluation is held against: questions, gold answers and gold titles. Errors name file and line."""

from __future__ import annotations

import ast
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from ragstone.data.lines import read_filled_lines, spaced
from ragstone.errors import InputError

GoldMode = Literal["qa", "ans"]


def read_questions(path: Path) -> list[str]:
    """The questions of an evaluation set, one per line, without the white space around them.

    Raises:
        InputError: the file cannot be read, is empty or has an empty line.
    """
    return [line.strip() for line in read_filled_lines(path, "a question")]


def read_gold_answers(path: Path, mode: GoldMode, questions: Sequence[str]) -> list[tuple[str, ...]]:
    """The accepted answers to each of `questions`, in their order.

    Args:
        path: a line per question.
        mode: "qa": question, tab, answers as a Python list of strings, which is parsed as a literal and never
            evaluated; "ans": the line is the only answer.
        questions: the evaluation set, which a "qa" file repeats.

    Raises:
        InputError: another number of lines than questions, a malformed line, or a question that is not the evaluation
            set's.
    """
    if mode == "ans":
        lines = _read_fitting_lines(path, "an answer", questions)
        return [(line.strip(),) for line in lines]
    lines = _read_fitting_lines(path, "a question, a tab and a list of answers", questions)
    return [
        _parse_qa_line(line, question, f"{path}, line {number}")
        for number, (line, question) in enumerate(zip(lines, questions, strict=True), start=1)
    ]


def read_gold_titles(path: Path, questions: Sequence[str]) -> list[tuple[str, ...]]:
    """The titles that a good retriever finds for each of `questions`, in their order; tab-separated in the file.

    Blanks within them are made single, as in the titles that a model finds.

    Raises:
        InputError: another number of lines than questions, or an empty line.
    """
    lines = _read_fitting_lines(path, "titles separated by tabs", questions)
    return [tuple(spaced(title) for title in line.split("\t") if title.strip()) for line in lines]


def _read_fitting_lines(path: Path, what: str, questions: Sequence[str]) -> list[str]:
    lines = read_filled_lines(path, what)
    if len(lines) != len(questions):
        raise InputError(
            f"{path} has {len(lines)} lines, but the evaluation set has {len(questions)}; line i of one must belong to "
            "line i of the other."
        )
    return lines


def _parse_qa_line(line: str, question: str, place: str) -> tuple[str, ...]:
    columns = line.split("\t")
    if len(columns) != 2:
        raise InputError(
            f"{place}: {len(columns)} column(s) instead of 2; a line is a question, a tab and a list of answers such "
            "as ['Paris', 'the city of Paris'] (with --gold_data_mode ans, a line is one answer)."
        )
    if spaced(question) not in (spaced(columns[0]), spaced(_unquoted(columns[0]))):
        raise InputError(
            f"{place}: the question {columns[0]!r} differs from the evaluation set's {question!r}; both files must "
            "hold the same questions in the same order."
        )
    return _parse_answers(_unquoted(columns[1].strip()), place)


def _parse_answers(text: str, place: str) -> tuple[str, ...]:
    try:
        with warnings.catch_warnings():
            # A backslash in an answer ('\d') is the compiler's business to warn of, not the user's.
            warnings.simplefilter("ignore")
            answers = ast.literal_eval(text)
    except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):
        answers = None
    if not isinstance(answers, list) or not all(isinstance(answer, str) for answer in answers):
        shown = text if len(text) <= 60 else text[:57] + "..."
        raise InputError(f"{place}: {shown!r} is not a list of strings such as ['Paris', 'the city of Paris'].")
    if not answers:
        raise InputError(f"{place}: the list of answers is empty; give at least one, or take the question out.")
    return tuple(answers)


def _unquoted(field: str) -> str:
    """A field without csv quoting, which pandas puts around fields that hold quotes."""
    inner = field[1:-1]
    quoted = len(field) >= 2 and field[0] == field[-1] == '"' and '"' not in inner.replace('""', "")
    return inner.replace('""', '"') if quoted else field
