"""The passages that questions compete over."""

from __future__ import annotations

from ragstone.data.dpr import Context, RetrieverExample
from ragstone.training.passage_pool import PassagePool

A, B, C, D = (Context(letter, f"text {letter}") for letter in "ABCD")


def example(positives: list[Context], hard_negatives: list[Context]) -> RetrieverExample:
    return RetrieverExample("q", positives[0], frozenset(map(hash, positives)), tuple(hard_negatives))


def test_positives_first_and_equal_passages_once() -> None:
    examples = [example([A], [B, D]), example([B], [D]), example([A], [C])]
    pool = PassagePool(examples)
    assert pool.passages == [A, B, D, C]
    assert pool.targets(examples).tolist() == [0, 1, 0]
    assert pool.rows([C, A]).tolist() == [3, 0]


def test_another_positive_of_the_question_is_excluded() -> None:
    """B answers the first question too, but is in the pool as the second one's positive; C is not in it at all."""
    examples = [example([A, B, C], [D]), example([B], [A])]
    pool = PassagePool(examples)
    assert pool.passages == [A, B, D]
    assert pool.excluded(examples).tolist() == [[False, True, False], [False, False, False]]


def test_questions_with_the_same_positive_share_it() -> None:
    examples = [example([A], []), example([A], [])]
    pool = PassagePool(examples)
    assert pool.passages == [A]
    assert pool.targets(examples).tolist() == [0, 0]
    assert not pool.excluded(examples).any()
