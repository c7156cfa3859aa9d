"""How sure a mean over questions is, and whether two systems differ: resampling of per-question scores.

Questions with equal scores are interchangeable, so a resample is drawn as how often each distinct score comes up:
exactly the same distribution as drawing questions, in far less time and memory.
Shapes: B questions, R resamples, U distinct scores.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from ragstone.evaluation.metrics import PerQuestion

RESAMPLES = 10_000
CHUNK = 2**22
"""Numbers drawn at a time."""
TOLERANCE = 1e-9
"""Two sums of scores nearer than this, relative to the scores' size, differ by rounding only."""


@dataclass(frozen=True)
class Interval:
    """A 95 % interval, unless another confidence was asked for."""

    low: float
    high: float


@dataclass(frozen=True)
class PairedDifference:
    """System A against system B on the same questions."""

    difference: float
    """Mean of A - mean of B."""
    interval: Interval
    """Of the difference, by the paired bootstrap."""
    p_value: float
    """Chance of a difference at least as large, in either direction, between systems that do not differ."""


def bootstrap_interval(
    scores: PerQuestion, *, seed: int = 0, resamples: int = RESAMPLES, confidence: float = 0.95
) -> Interval:
    """Percentile bootstrap interval of the mean (Efron & Tibshirani 1993, chapter 13).

    Args:
        scores: [B], at least one.
        seed: of the resampling; the same scores and seed give the same interval.
        resamples: R.
        confidence: share of resampled means inside.
    """
    values, counts = np.unique(scores, return_counts=True)
    generator = np.random.default_rng(seed)
    means = np.empty(resamples)
    for part in _chunks(resamples, len(values)):
        drawn = generator.multinomial(len(scores), counts / len(scores), size=part.stop - part.start)
        means[part] = drawn @ values / len(scores)
    tail = (1 - confidence) / 2
    low, high = np.quantile(means, [tail, 1 - tail])
    return Interval(float(low), float(high))


def paired_difference(
    scores: PerQuestion, others: PerQuestion, *, seed: int = 0, resamples: int = RESAMPLES
) -> PairedDifference:
    """Compare two systems' scores [B] on the same questions in the same order.

    The interval is the paired bootstrap's; the p-value is approximate randomisation's (Noreen 1989), which exchanges
    the systems' scores on random questions; it is never below 1 / (R + 1).
    """
    differences = scores - others
    return PairedDifference(
        difference=float(differences.mean()),
        interval=bootstrap_interval(differences, seed=seed, resamples=resamples),
        p_value=_randomisation_p_value(differences, seed, resamples),
    )


def _randomisation_p_value(differences: PerQuestion, seed: int, resamples: int) -> float:
    # Exchanging a question's two scores flips the sign of their difference; of c equal ones, Binomial(c, 1/2) flip.
    values, counts = np.unique(np.abs(differences[differences != 0]), return_counts=True)
    if not len(values):
        return 1.0
    observed = abs(float(differences.sum()))
    slack = TOLERANCE * float(np.abs(differences).sum())
    generator = np.random.default_rng(seed)
    as_large = 0
    for part in _chunks(resamples, len(values)):
        kept = generator.binomial(counts, 0.5, size=(part.stop - part.start, len(values)))
        as_large += int((np.abs((2 * kept - counts) @ values) >= observed - slack).sum())
    return (as_large + 1) / (resamples + 1)


def _chunks(resamples: int, width: int) -> list[slice]:
    step = max(1, CHUNK // width)
    return [slice(start, min(start + step, resamples)) for start in range(0, resamples, step)]
