"""Intervals and p-values against independent computations."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ragstone.evaluation.bootstrap import RESAMPLES, bootstrap_interval, paired_difference

scores = st.lists(st.sampled_from([0.0, 0.25, 0.5, 2 / 3, 1.0]), min_size=1, max_size=40).map(np.array)


def test_interval_equals_drawing_questions_one_by_one() -> None:
    values = np.random.default_rng(1).beta(0.5, 0.7, 200).round(1)
    drawn = np.random.default_rng(2).choice(values, size=(20_000, len(values)))
    low, high = np.quantile(drawn.mean(axis=1), [0.025, 0.975])
    interval = bootstrap_interval(values)
    # Two runs of so many resamples agree to about 1/50 of the interval's width.
    assert interval.low == pytest.approx(low, abs=0.05 * (high - low))
    assert interval.high == pytest.approx(high, abs=0.05 * (high - low))


def test_interval_of_zeros_and_ones_is_the_binomials() -> None:
    """The mean of n resampled zeros and ones is Binomial(n, share) / n, whose quantiles are computed exactly."""
    n, ones = 100, 30
    pmf, cumulative, quantiles = (1 - ones / n) ** n, 0.0, []
    for successes in range(n + 1):
        cumulative += pmf
        for tail in (0.025, 0.975):
            if cumulative - pmf < tail <= cumulative:
                quantiles.append(successes / n)
        pmf *= (n - successes) / (successes + 1) * ones / (n - ones)
    interval = bootstrap_interval(np.array([1.0] * ones + [0.0] * (n - ones)))
    assert interval.low == pytest.approx(quantiles[0], abs=0.0101)
    assert interval.high == pytest.approx(quantiles[1], abs=0.0101)


def test_interval_covers_the_truth_about_95_times_in_100() -> None:
    generator = np.random.default_rng(3)
    covered = 0
    for _ in range(400):
        interval = bootstrap_interval((generator.random(80) < 0.4).astype(float), resamples=1000)
        covered += interval.low <= 0.4 <= interval.high
    # Standard deviation of the share is 1.1 %; the percentile interval is known to be slightly narrow.
    assert 0.90 <= covered / 400 <= 0.99


@settings(max_examples=30, deadline=None)
@given(values=scores)
def test_interval_holds_the_mean_and_stays_in_range(values: np.ndarray) -> None:
    interval = bootstrap_interval(values, resamples=500)
    assert values.min() - 1e-9 <= interval.low <= values.mean() + 1e-9
    assert values.mean() - 1e-9 <= interval.high <= values.max() + 1e-9


@settings(max_examples=30, deadline=None)
@given(values=scores)
def test_interval_depends_on_the_scores_alone(values: np.ndarray) -> None:
    assert bootstrap_interval(values) == bootstrap_interval(values[::-1])
    wide = bootstrap_interval(values, confidence=0.99)
    narrow = bootstrap_interval(values, confidence=0.5)
    assert wide.low <= narrow.low <= narrow.high <= wide.high


def exact_p_value(differences: list[float]) -> float:
    """Approximate randomisation without the approximation: every assignment of signs."""
    observed = abs(sum(differences))
    flipped = [abs(sum(s * d for s, d in zip(signs, differences, strict=True))) for signs in _signs(len(differences))]
    return sum(value >= observed - 1e-9 for value in flipped) / len(flipped)


def _signs(n: int) -> itertools.product[tuple[int, ...]]:
    return itertools.product([-1, 1], repeat=n)


@pytest.mark.parametrize(
    ("ours", "theirs"),
    [
        # All 8 differ in one direction: only 2 of the 256 assignments of signs are as extreme, p = 1/128.
        ([1.0] * 8, [0.0] * 8),
        ([1, 1, 1, 0, 1, 0], [0, 0, 1, 0, 0, 1]),
        ([0.5, 2 / 3, 1, 0.1, 0.4], [0.25, 1, 0.5, 0, 0.4]),
    ],
)
def test_p_value_against_all_assignments_of_signs(ours: list[float], theirs: list[float]) -> None:
    result = paired_difference(np.array(ours, dtype=float), np.array(theirs, dtype=float), resamples=40_000)
    expected = exact_p_value([a - b for a, b in zip(ours, theirs, strict=True)])
    assert result.p_value == pytest.approx(expected, abs=0.01)
    assert result.difference == pytest.approx(np.mean(ours) - np.mean(theirs))


def test_systems_that_do_not_differ() -> None:
    values = np.array([0.0, 1.0, 0.5])
    result = paired_difference(values, values)
    assert (result.difference, result.p_value) == (0, 1)
    assert (result.interval.low, result.interval.high) == (0, 0)


def test_a_large_difference_reaches_the_smallest_p_value() -> None:
    result = paired_difference(np.ones(100), np.zeros(100))
    assert result.p_value == pytest.approx(1 / (RESAMPLES + 1))
    assert result.interval.low == result.interval.high == 1


def test_equal_systems_are_called_different_about_5_times_in_100() -> None:
    generator = np.random.default_rng(4)
    called = 0
    for _ in range(400):
        ours, theirs = (generator.random((2, 60)) < 0.5).astype(float)
        called += paired_difference(ours, theirs, resamples=500).p_value < 0.05
    assert called / 400 <= 0.08


@settings(max_examples=30, deadline=None)
@given(pairs=st.lists(st.tuples(st.sampled_from([0.0, 0.5, 1.0]), st.sampled_from([0.0, 0.5, 1.0])), min_size=1))
def test_exchanging_the_systems_turns_the_sign_only(pairs: list[tuple[float, float]]) -> None:
    ours, theirs = np.array(pairs).T
    forth, back = paired_difference(ours, theirs, resamples=300), paired_difference(theirs, ours, resamples=300)
    assert forth.difference == -back.difference
    assert forth.p_value == back.p_value
    assert 1 / 301 <= forth.p_value <= 1
