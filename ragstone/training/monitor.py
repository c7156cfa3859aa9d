"""What a training run says about itself: loss per token, speed, and whether retrieval still looks around.

Shapes: B questions, N passages per question.
"""

from __future__ import annotations

import time
from collections import deque

from ragstone.model.model import BatchLoss

WINDOW = 50
"""Batches that are averaged over."""
COLLAPSED = 0.1
"""Part of distinct passages below which retrieval counts as collapsed."""
ENOUGH_PASSAGES = 200
"""Retrieved passages that a verdict of collapse needs."""


class Monitor:
    """Collects the batches of a run."""

    def __init__(self, corpus_size: int | None = None) -> None:
        """`corpus_size` is the number of passages that there are; a small corpus repeats itself without collapsing."""
        self._batches: deque[tuple[float, BatchLoss]] = deque(maxlen=WINDOW)
        self._corpus_size = corpus_size
        self._last = time.perf_counter()
        self._warned = False

    def add(self, batch: BatchLoss) -> None:
        """Take in a batch that has just been trained on."""
        now = time.perf_counter()
        self._batches.append((now - self._last, batch))
        self._last = now

    def pause(self) -> None:
        """Leave out the time since the last batch (a validation)."""
        self._last = time.perf_counter()

    def measures(self) -> dict[str, float]:
        """Averages over the last batches, of which there must be one.

        loss_per_token: -log p(y|x) in nats per target token. questions_per_second. With retrieval also
        distinct_passages: distinct / retrieved passages; 1 is best, near 0 every question gets the same ones; and
        prior_entropy, posterior_entropy: nats per question; 0 where one passage has all the weight, log N where all
        are alike.
        """
        batches = [batch for _, batch in self._batches]
        questions = sum(batch.questions for batch in batches)
        values = {
            "loss_per_token": sum(b.nll for b in batches) / max(1, sum(b.target_tokens for b in batches)),
            "questions_per_second": questions / max(sum(seconds for seconds, _ in self._batches), 1e-9),
        }
        ratio, retrieved = self._distinct(batches)
        if retrieved:
            values["distinct_passages"] = ratio
            values["prior_entropy"] = sum(batch.prior_entropy for batch in batches) / questions
            values["posterior_entropy"] = sum(batch.posterior_entropy for batch in batches) / questions
        return values

    def line(self, learning_rate: float) -> str:
        """The measures in one line for people."""
        values = self.measures()
        parts = [
            f"loss/token {values['loss_per_token']:.3f}",
            f"{values['questions_per_second']:.1f} questions/s",
            f"lr {learning_rate:.2e}",
        ]
        if "distinct_passages" in values:
            parts.append(f"distinct {values['distinct_passages']:.2f}")
            parts.append(f"entropy prior {values['prior_entropy']:.2f} posterior {values['posterior_entropy']:.2f}")
        return "  ".join(parts)

    def warning(self) -> str | None:
        """A sentence, once, when retrieval has collapsed onto few passages."""
        ratio, retrieved = self._distinct([batch for _, batch in self._batches])
        if self._warned or retrieved < ENOUGH_PASSAGES or not ratio < COLLAPSED:
            return None
        self._warned = True
        return (
            f"Retrieval has collapsed: only {ratio:.1%} of the last {retrieved} retrieved passages are distinct. "
            "Lower --learning_rate, or keep the question encoder as it is with --freeze_question_encoder."
        )

    def _distinct(self, batches: list[BatchLoss]) -> tuple[float, int]:
        found = [int(i) for b in batches if b.passage_ids is not None for i in b.passage_ids.ravel() if i >= 0]
        if not found:
            return float("nan"), 0
        possible = len(found) if self._corpus_size is None else min(len(found), self._corpus_size)
        return len(set(found)) / possible, len(found)
