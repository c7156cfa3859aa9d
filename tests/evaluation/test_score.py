"""Scores in percent, comparisons, and how both are told."""

from __future__ import annotations

import numpy as np
import pytest

from ragstone.evaluation.score import (
    compare,
    describe,
    describe_comparison,
    label,
    measure_answers,
    measure_passages,
    measure_titles,
    summarise,
)


def test_scores_are_percentages_with_their_interval() -> None:
    scores = summarise(measure_answers(["red", "blue hill", "x", "y"], [["red"], ["blue"], ["z"], ["y"]]))
    # EM: 1, 0, 0, 1. F1: 1, 2/3 ({blue, hill} against {blue}), 0, 1: 8/3 over 4 is 2/3.
    assert scores["em"].value == 50
    assert scores["f1"].value == pytest.approx(100 * 2 / 3)
    assert scores["em"].n == 4
    # Four questions: the mean of a resample is 0 with chance 1/16, which is above 2.5 %.
    assert (scores["em"].low, scores["em"].high) == (0, 100)
    assert describe(scores["em"]) == "50.0  [0.0, 100.0]"


def test_titles_and_passages() -> None:
    titles = measure_titles([["x", "y"], ["z", "z"]], [["y"], ["z", "w"]], k=2)
    # Distinct gold titles among two: 1/2 and 1/2. First gold title: second, first.
    np.testing.assert_array_equal(titles["precision_at_2"], [0.5, 0.5])
    np.testing.assert_array_equal(titles["mrr_title"], [0.5, 1])
    passages = measure_passages(iter([["no", "blue"], ["blue", "no"]]), [["blue"], ["blue"]], depths=[1, 2])
    assert list(passages) == ["recall_at_1", "recall_at_2", "mrr_answer"]
    np.testing.assert_array_equal(passages["recall_at_1"], [0, 1])
    np.testing.assert_array_equal(passages["recall_at_2"], [1, 1])


def test_comparison_says_what_is_not_significant() -> None:
    ours, theirs = {"em": np.array([1.0, 1, 0, 1]), "f1": np.ones(4)}, {"em": np.array([1.0, 0, 0, 1])}
    comparisons = compare(ours, theirs)
    assert list(comparisons) == ["em"]
    # One question differs: either sign of its difference is as extreme, p = 1.
    assert not comparisons["em"].significant
    assert comparisons["em"].difference == 25
    assert "no significant difference" in describe_comparison(comparisons["em"])
    clear = compare({"em": np.ones(20)}, {"em": np.zeros(20)})["em"]
    assert clear.significant
    assert describe_comparison(clear).startswith("EM 100.0 against 0.0: +100.0")
    assert ": a significant difference" in describe_comparison(clear)


@pytest.mark.parametrize(
    ("name", "shown"),
    [
        ("em", "EM"),
        ("f1", "F1"),
        ("precision_at_1", "Precision@1"),
        ("recall_at_20", "Recall@20"),
        ("mrr_title", "MRR (title)"),
    ],
)
def test_labels(name: str, shown: str) -> None:
    assert label(name) == shown
