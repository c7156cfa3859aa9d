"""What a run says about itself, worked out by hand."""

from __future__ import annotations

import math
import time
from typing import Any

import numpy as np
import pytest
import torch

from ragstone.model.model import BatchLoss
from ragstone.training.monitor import Monitor, as_line


def batch(ids: Any = None, nll: float = 6.0, tokens: int = 4, questions: int = 2) -> BatchLoss:
    found = None if ids is None else np.array(ids, dtype=np.int64)
    return BatchLoss(torch.tensor(1.0), nll, questions, tokens, found, 1.0 * questions, 0.5 * questions)


def test_averages_are_over_tokens_and_questions() -> None:
    monitor = Monitor(batches_per_epoch=10)
    monitor.add(batch([[1, 2], [1, 3]], nll=6.0, tokens=4, questions=2))
    monitor.add(batch([[1, -1]], nll=3.0, tokens=6, questions=1))
    measures = monitor.measures()
    assert measures["loss_per_token"] == pytest.approx(9.0 / 10)
    # 1, 2, 1, 3, 1: three of five; the slot without a passage does not count.
    assert measures["distinct_passages"] == pytest.approx(3 / 5)
    assert measures["prior_entropy"] == pytest.approx(1.0)
    assert measures["posterior_entropy"] == pytest.approx(0.5)


def test_questions_per_second_leaves_out_what_is_no_training() -> None:
    monitor = Monitor(batches_per_epoch=10)
    time.sleep(0.5)
    monitor.restart()
    time.sleep(0.05)
    monitor.add(batch(questions=5))
    assert 5 / 0.5 < monitor.measures()["questions_per_second"] <= 5 / 0.05


def test_a_restart_forgets() -> None:
    monitor = Monitor(batches_per_epoch=10)
    monitor.add(batch([[1, 2]], nll=100.0))
    monitor.restart()
    monitor.add(batch([[3, 4]], nll=8.0, tokens=4))
    assert monitor.measures()["loss_per_token"] == 2.0
    assert monitor.measures()["distinct_passages"] == 1.0


def test_no_more_than_an_epoch_is_averaged() -> None:
    monitor = Monitor(batches_per_epoch=2)
    for ids in ([[0, 1]], [[2, 3]], [[0, 1]], [[2, 3]]):
        monitor.add(batch(ids, questions=1))
    assert monitor.measures()["distinct_passages"] == 1.0


def test_a_small_corpus_has_not_collapsed() -> None:
    whole = [[i % 4, (i + 1) % 4] for i in range(150)]
    small, large = Monitor(10, corpus_size=4), Monitor(10, corpus_size=10_000)
    for monitor in (small, large):
        monitor.add(batch(whole, questions=150))
    assert small.measures()["distinct_passages"] == 1.0
    assert small.warning() is None
    assert large.measures()["distinct_passages"] == pytest.approx(4 / 300)
    assert "--freeze_question_encoder" in str(large.warning())
    assert large.warning() is None, "once is enough"


def test_few_passages_are_no_verdict() -> None:
    monitor = Monitor(10, corpus_size=10_000)
    monitor.add(batch([[7, 7]] * 99, questions=99))
    assert monitor.warning() is None
    monitor.add(batch([[7, 7]], questions=1))
    assert monitor.warning() is not None


def test_without_retrieval_there_is_nothing_to_say_of_passages() -> None:
    monitor = Monitor(10)
    monitor.add(batch())
    assert set(monitor.measures()) == {"loss_per_token", "questions_per_second"}
    assert "distinct" not in as_line(monitor.measures(), 1e-3)
    assert monitor.warning() is None


def test_the_line_shows_everything() -> None:
    values = {"loss_per_token": math.pi, "questions_per_second": 12.34}
    retrieval = {"distinct_passages": 0.5, "prior_entropy": 1.5, "posterior_entropy": 0.25}
    line = as_line({**values, **retrieval}, 3e-5)
    assert line == ("loss/token 3.142  12.3 questions/s  lr 3.00e-05  distinct 0.50  entropy prior 1.50 posterior 0.25")
