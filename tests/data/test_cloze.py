"""Clozes: the answer stands in the passage, the question beside it, and a name is asked for by a question word."""

from __future__ import annotations

import random

import pytest

from ragstone.data.cloze import make_cloze, name_phrases
from ragstone.types import Passage

TEXT = (
    "In 1851 the engineer Ada Brook built a bridge over the Lisk, and 320 people crossed it on the first day. "
    "The mayor of Old Sumner, who had doubted it, was the last to come."
)


def test_names_and_numbers_are_found_and_end_at_punctuation() -> None:
    words = TEXT.split()
    found = [" ".join(words[begin:end]) for begin, end in name_phrases(words)]
    assert found == ["1851", "Ada Brook", "Lisk,", "320", "Old Sumner,"]


def test_a_long_name_is_cut_after_four_words() -> None:
    assert name_phrases("Ann Bea Cat Dot Eve met".split()) == [(0, 4), (4, 5)]  # noqa: SIM905


@pytest.mark.parametrize("seed", range(40))
def test_the_question_is_made_of_the_passage_and_leaves_the_answer_out(seed: int) -> None:
    cloze = make_cloze(Passage(0, "Bridge", TEXT), random.Random(seed))
    assert cloze is not None
    assert cloze.answer in TEXT
    assert 1 <= len(cloze.answer.split()) <= 4
    title, *words = cloze.question.split()
    assert title == "Bridge"
    rest = [word for word in words if word not in TEXT.split()]
    asked = {"who", "what", "which", "where", "when", "how", "many"}
    assert set(rest) <= asked
    assert asked & set(words)


def test_years_are_asked_with_when_and_numbers_with_how_many() -> None:
    questions = {
        cloze.answer: cloze.question
        for seed in range(300)
        if (cloze := make_cloze(Passage(0, "", TEXT), random.Random(seed))) is not None
    }
    assert "when" in questions["1851"].split()
    assert "how many" in questions["320"]


def test_nothing_is_asked_that_the_title_tells() -> None:
    clozes = [make_cloze(Passage(0, "The life of Ada Brook", TEXT), random.Random(seed)) for seed in range(100)]
    assert {cloze.answer for cloze in clozes if cloze is not None} & {"1851", "Lisk"}
    assert "Ada Brook" not in {cloze.answer for cloze in clozes if cloze is not None}


def test_a_short_passage_gives_none() -> None:
    assert make_cloze(Passage(0, "", "Too short to ask about."), random.Random(0)) is None
