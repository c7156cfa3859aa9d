"""What a training run says about itself: loss per token, speed, and whether retrieval still looks around.

Shapes: B questions, N passages per question.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Mapping
from typing import NamedTuple

import numpy as np

from ragstone.model.model import BatchLoss
from ragstone.types import IntArray

WINDOW = 50
"""Batches that are averaged over at most."""
COLLAPSED = 0.1
"""Part of distinct passages below which retrieval counts as collapsed."""
ENOUGH_PASSAGES = 200
"""Retrieved passages that a verdict of collapse needs."""


class Batch(NamedTuple):
    """What is kept of a batch: sums over its questions. See BatchLoss."""

    seconds: float
    questions: int
    nll: float
    target_tokens: int
    prior_entropy: float
    posterior_entropy: float


class Monitor:
    """Collects the batches of a run."""

    def __init__(self, batches_per_epoch: int, corpus_size: int | None = None) -> None:
        """`corpus_size` is the number of passages that there are; a small corpus repeats itself without collapsing.

        For the same reason no more than an epoch is looked at: the same questions find the same passages.
        """
        length = min(WINDOW, batches_per_epoch)
        self._batches: deque[Batch] = deque(maxlen=length)
        self._passages: deque[IntArray] = deque(maxlen=length)
        self._corpus_size = corpus_size
        self._last = time.perf_counter()
        self._warned = False

    def add(self, loss: BatchLoss) -> None:
        """Take in a batch that has just been trained on."""
        now = time.perf_counter()
        self._batches.append(
            Batch(
                now - self._last,
                loss.questions,
                loss.nll,
                loss.target_tokens,
                loss.prior_entropy,
                loss.posterior_entropy,
            )
        )
        if loss.passage_ids is not None:
            self._passages.append(loss.passage_ids[loss.passage_ids >= 0])
        self._last = now

    def restart(self) -> None:
        """Forget the batches and leave out the time since: the next averages start here (after a validation)."""
        self._batches.clear()
        self._passages.clear()
        self._last = time.perf_counter()

    def measures(self) -> dict[str, float]:
        """Averages over the last batches, of which there must be one.

        loss_per_token: -log p(y|x) in nats per target token. questions_per_second. With retrieval also
        distinct_passages: distinct / retrieved passages; 1 is best, near 0 every question gets the same ones; and
        prior_entropy, posterior_entropy: nats per question; 0 where one passage has all the weight, log N where all
        are alike.
        """
        sums = Batch(*(sum(column) for column in zip(*self._batches, strict=True)))
        values = {
            "loss_per_token": sums.nll / max(1, sums.target_tokens),
            "questions_per_second": sums.questions / max(sums.seconds, 1e-9),
        }
        distinct, retrieved = self._distinct()
        if retrieved:
            values["distinct_passages"] = distinct
            values["prior_entropy"] = sums.prior_entropy / sums.questions
            values["posterior_entropy"] = sums.posterior_entropy / sums.questions
        return values

    def warning(self) -> str | None:
        """A sentence, once, when retrieval has collapsed onto few passages."""
        distinct, retrieved = self._distinct()
        if self._warned or retrieved < ENOUGH_PASSAGES or distinct >= COLLAPSED:
            return None
        self._warned = True
        return (
            f"Retrieval has collapsed: the last {retrieved} retrieved passages are nearly all the same (distinct "
            f"{distinct:.3f}). Lower --question_encoder_learning_rate, or keep the question encoder as it is with "
            "--freeze_question_encoder."
        )

    def _distinct(self) -> tuple[float, int]:
        """Distinct passages as part of those that there could be, and how many were retrieved."""
        found = np.concatenate(self._passages) if self._passages else np.empty(0, dtype=np.int64)
        possible = len(found) if self._corpus_size is None else min(len(found), self._corpus_size)
        return len(np.unique(found)) / max(1, possible), len(found)


def as_line(measures: Mapping[str, float], learning_rate: float) -> str:
    """A monitor's measures in one line for people."""
    parts = [
        f"loss/token {measures['loss_per_token']:.3f}",
        f"{measures['questions_per_second']:.1f} questions/s",
        f"lr {learning_rate:.2e}",
    ]
    if "distinct_passages" in measures:
        parts.append(f"distinct {measures['distinct_passages']:.2f}")
        parts.append(f"entropy prior {measures['prior_entropy']:.2f} posterior {measures['posterior_entropy']:.2f}")
    return "  ".join(parts)
