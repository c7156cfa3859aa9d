"""Metrics on cases worked out by hand; the working stands beside each."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ragstone.evaluation.metrics import (
    answer_ranks,
    exact_match,
    exact_matches,
    f1,
    f1s,
    has_answer,
    hits_at_k,
    normalize_answer,
    precisions_at_k,
    reciprocal_ranks,
    title_ranks,
)


@pytest.mark.parametrize(
    ("text", "normalized"),
    [
        # Lower case first, so that an article at the start goes too.
        ("The Old  Bridge", "old bridge"),
        # Punctuation goes before articles do: "a." becomes "a", then nothing.
        ("Section a.", "section"),
        # ... and joins what it stood between: "U.S.A." is one word, and so is "twenty-one".
        ("U.S.A.", "usa"),
        ("twenty-one", "twentyone"),
        # Within a word an article stays.
        ("theatre banana", "theatre banana"),
        # Only ASCII punctuation goes: the dash of "1914–18" and the quotes of „Faust“ stay.
        ("1914–18", "1914–18"),
        ("„Faust“", "„faust“"),
        # White space of any kind is one blank; a no-break space too.
        ("river\u00a0 \thill", "river hill"),
        # Lower case of unicode: É is é, while the capital sharp s is ß.
        ("ÉCOLE STRAẞE", "école straße"),
        # An article in front of a combining mark is a word by the standard library's rule, and goes.
        ("the\u0301 x", "\u0301 x"),
        # A superscript two counts as part of a word, so "the²" is not an article.
        ("the² x", "the² x"),
        ("the a an", ""),
        ("", ""),
    ],
)
def test_normalisation_is_squads(text: str, normalized: str) -> None:
    assert normalize_answer(text) == normalized


@pytest.mark.parametrize(
    ("prediction", "golds", "em", "expected_f1"),
    [
        ("the Eiffel Tower!", ["Eiffel Tower"], 1, 1),
        # Words {big, red, bridge} against {red, bridge}: 2 shared, precision 2/3, recall 1, F1 = 2·(2/3)/(5/3) = 4/5.
        ("a big red bridge", ["red bridge"], 0, 4 / 5),
        # The best gold counts: against "the king" (1 shared of 3 and of 1) 2·(1/3)·1/(4/3) = 1/2, against "otto the old
        # king" ({otto, old, king}: 2 shared of 3 and of 3) 2/3.
        ("old king mara", ["the king", "otto the old king"], 0, 2 / 3),
        # Counted with repetition: "no no yes" against "no yes yes" share one no and one yes: 2/3 and 2/3.
        ("no no yes", ["no yes yes"], 0, 2 / 3),
        ("blue", ["red"], 0, 0),
        ("", ["red"], 0, 0),
        # Both are nothing once normalised: exactly equal, yet no words are shared, so that the published F1 is 0.
        ("the", ["a"], 1, 0),
        # EM asks for the same order, F1 does not.
        ("hill river", ["river hill"], 0, 1),
        ("red", [], 0, 0),
    ],
)
def test_exact_match_and_f1_by_hand(prediction: str, golds: list[str], em: float, expected_f1: float) -> None:
    assert exact_match(prediction, golds) == em
    assert f1(prediction, golds) == pytest.approx(expected_f1, abs=1e-12)


def test_a_value_for_each_question() -> None:
    predictions, golds = ["red", "a blue hill"], [["red"], ["blue", "green"]]
    np.testing.assert_array_equal(exact_matches(predictions, golds), [1, 0])
    # {blue, hill} against {blue}: precision 1/2, recall 1, F1 2/3.
    np.testing.assert_allclose(f1s(predictions, golds), [1, 2 / 3])
    with pytest.raises(ValueError, match="zip"):
        exact_matches(predictions, golds[:1])


words = st.lists(st.sampled_from(["the", "a", "Red", "blue.", "hill", "école", "²"]), max_size=6).map(" ".join)


@given(prediction=words, gold=words)
def test_f1_is_symmetric_and_bounded(prediction: str, gold: str) -> None:
    value = f1(prediction, [gold])
    assert 0 <= value <= 1
    assert value == pytest.approx(f1(gold, [prediction]))
    assert normalize_answer(normalize_answer(gold)) == normalize_answer(gold)
    if exact_match(prediction, [gold]) and normalize_answer(gold):
        assert value == 1


@given(prediction=words, golds=st.lists(words, min_size=1, max_size=4))
def test_one_more_gold_never_hurts(prediction: str, golds: list[str]) -> None:
    assert f1(prediction, golds) >= f1(prediction, golds[:-1])
    assert exact_match(prediction, golds) >= exact_match(prediction, golds[:-1])


def test_precision_at_k_is_the_references() -> None:
    found = [
        ["River", "River", "Hill"],  # first 2 titles are one title: {River} ∩ {River, Hill} has 1, over 2
        ["Hill", "River", "Town"],  # {Hill, River}: both are gold, 2 over 2
        ["Town", "King", "River"],  # {Town, King}: none, though River is gold and third
        [""],  # nothing was found
    ]
    golds = [["River", "Hill"], ["River", "Hill"], ["River"], ["River"]]
    np.testing.assert_array_equal(precisions_at_k(found, golds, 2), [0.5, 1, 0, 0])
    # k = 1: River, Hill, Town against gold.
    np.testing.assert_array_equal(precisions_at_k(found, golds, 1), [1, 1, 0, 0])
    # k = 3: {River, Hill}/3, {Hill, River}/3, {River}/3.
    np.testing.assert_allclose(precisions_at_k(found, golds, 3), [2 / 3, 2 / 3, 1 / 3, 0])


@pytest.mark.parametrize(
    ("text", "answers", "found"),
    [
        ("In 1815 the old bridge fell.", ["1815"], True),
        # DPR's words are whole: 181 is no word of the text.
        ("In 1815 the old bridge fell.", ["181"], False),
        # Case does not matter, and punctuation is a word of its own: "U.S." is u . s . on both sides.
        ("Made in the U.S. of old.", ["u.s."], True),
        ("Made in the US of old.", ["u.s."], False),
        # Words must stand side by side.
        ("the old stone bridge", ["old bridge"], False),
        ("the old stone bridge", ["no", "Stone Bridge"], True),
        # Composed and decomposed letters are the same after NFD.
        ("une e\u0301cole", ["\u00e9cole"], True),
        # Articles count, unlike in exact match.
        ("old bridge", ["the old bridge"], False),
        # An answer without words stands nowhere.
        ("old bridge", ["", "  "], False),
        ("", ["old"], False),
    ],
)
def test_has_answer_by_dprs_words(text: str, answers: list[str], found: bool) -> None:
    assert has_answer(text, answers) is found


def test_ranks_recall_and_mrr_by_hand() -> None:
    texts = [["a red hill", "the blue river"], ["a blue hill"], []]
    answers = [["blue"], ["blue", "red"], ["blue"]]
    ranks = answer_ranks(texts, answers)
    np.testing.assert_array_equal(ranks, [2, 1, 0])
    np.testing.assert_array_equal(hits_at_k(ranks, 1), [0, 1, 0])
    np.testing.assert_array_equal(hits_at_k(ranks, 2), [1, 1, 0])
    # MRR = (1/2 + 1 + 0) / 3 = 1/2.
    assert reciprocal_ranks(ranks).mean() == 0.5
    np.testing.assert_array_equal(title_ranks([["x", "y", "y"], ["z"]], [["y"], ["y"]]), [2, 0])


@given(st.lists(st.integers(0, 20), min_size=1), st.integers(1, 20))
def test_recall_grows_with_k_and_bounds_mrr(values: list[int], k: int) -> None:
    ranks = np.array(values)
    assert (hits_at_k(ranks, k) <= hits_at_k(ranks, k + 1)).all()
    assert (hits_at_k(ranks, 1) <= reciprocal_ranks(ranks)).all()
    assert (reciprocal_ranks(ranks) <= hits_at_k(ranks, 20)).all()
