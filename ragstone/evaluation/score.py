"""Predictions and gold to scores with intervals, and the comparison of two sets of predictions.

Scores are percentages, MRR too. Shapes: B questions.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from ragstone.evaluation import metrics
from ragstone.evaluation.bootstrap import bootstrap_interval, paired_difference
from ragstone.evaluation.metrics import PerQuestion
from ragstone.progress import track

SIGNIFICANCE = 0.05

Measures = Mapping[str, PerQuestion]
"""A value in [0, 1] per question for each metric: em, f1, precision_at_1, recall_at_5, mrr_title, mrr_answer."""


@dataclass(frozen=True)
class Score:
    """A metric's mean over questions in percent, with its 95 % bootstrap interval."""

    name: str
    value: float
    low: float
    high: float
    n: int
    """Questions."""


@dataclass(frozen=True)
class Comparison:
    """A metric of these predictions against that of others, in percent points."""

    name: str
    value: float
    other: float
    difference: float
    low: float
    """95 % paired bootstrap interval of the difference, from here ..."""
    high: float
    """... to here."""
    p_value: float

    @property
    def significant(self) -> bool:
        """Whether the difference is significant at 5 %."""
        return self.p_value < SIGNIFICANCE


def measure_answers(predictions: Sequence[str], golds: Sequence[Sequence[str]]) -> Measures:
    """Exact match and F1 of answers, one per question."""
    return {"em": metrics.exact_matches(predictions, golds), "f1": metrics.f1s(predictions, golds)}


def measure_titles(titles: Sequence[Sequence[str]], golds: Sequence[Sequence[str]], k: int) -> Measures:
    """Precision@k and reciprocal rank by title; `titles` are those of the retrieved passages, best first."""
    ranks = metrics.title_ranks(titles, golds)
    return {
        f"precision_at_{k}": metrics.precisions_at_k(titles, golds, k),
        "mrr_title": metrics.reciprocal_ranks(ranks),
    }


def measure_passages(texts: Iterable[Sequence[str]], golds: Sequence[Sequence[str]], depths: Iterable[int]) -> Measures:
    """Recall@k for each k of `depths`, and reciprocal rank, of passages that contain an answer."""
    ranks = metrics.answer_ranks(texts, golds)
    recalls = {f"recall_at_{k}": metrics.hits_at_k(ranks, k) for k in depths}
    return {**recalls, "mrr_answer": metrics.reciprocal_ranks(ranks)}


def summarise(measures: Measures, seed: int = 0) -> dict[str, Score]:
    """The mean of each metric with its interval."""
    scores = {}
    for name, values in track(measures.items(), "Bootstrap intervals"):
        interval = bootstrap_interval(values, seed=seed)
        scores[name] = Score(name, 100 * float(values.mean()), 100 * interval.low, 100 * interval.high, len(values))
    return scores


def compare(measures: Measures, others: Measures, seed: int = 0) -> dict[str, Comparison]:
    """The paired test of each metric that both have, on the same questions in the same order."""
    comparisons = {}
    shared = [name for name in measures if name in others]
    for name in track(shared, "Paired tests"):
        result = paired_difference(measures[name], others[name], seed=seed)
        comparisons[name] = Comparison(
            name=name,
            value=100 * float(measures[name].mean()),
            other=100 * float(others[name].mean()),
            difference=100 * result.difference,
            low=100 * result.interval.low,
            high=100 * result.interval.high,
            p_value=result.p_value,
        )
    return comparisons


def label(name: str) -> str:
    """How a metric is called in print: "em" is EM, "recall_at_5" is Recall@5, "mrr_title" is MRR (title)."""
    metric, _, rest = name.partition("_")
    if metric in ("em", "f1"):
        return metric.upper()
    return f"MRR ({rest})" if metric == "mrr" else f"{metric.capitalize()}@{rest.removeprefix('at_')}"


def describe(score: Score) -> str:
    """A score as text: 41.2  [38.7, 43.9]."""
    return f"{score.value:.1f}  [{score.low:.1f}, {score.high:.1f}]"


def describe_comparison(comparison: Comparison) -> str:
    """A comparison in words that say whether the difference is significant."""
    verdict = "a significant difference" if comparison.significant else "no significant difference"
    return (
        f"{label(comparison.name)} {comparison.value:.1f} against {comparison.other:.1f}: "
        f"{comparison.difference:+.1f}  [{comparison.low:+.1f}, {comparison.high:+.1f}], p = {comparison.p_value:.4f}: "
        f"{verdict} at 5 %."
    )
