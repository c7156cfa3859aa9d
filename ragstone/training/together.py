"""What the processes of a run do together: each its part of a batch or of a data set, and all know the whole."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from ragstone.model.decoding import Decoding
from ragstone.model.model import BatchLoss, Model, answer_questions
from ragstone.processes.processes import Processes, part_of, whole_of
from ragstone.types import Example


def answer_examples(
    model: Model,
    examples: Sequence[Example],
    decoding: Decoding,
    batch_size: int,
    accelerator: Any,
    processes: Processes,
) -> list[str]:
    """The model's best answer to the question of each of `examples`; each process answers its part, and gets all."""
    part = part_of([example.question for example in examples], processes.place)
    with accelerator.autocast():
        answers = answer_questions(model, part, decoding=decoding, batch_size=batch_size)
        return whole_of(processes.gather([answer.text for answer in answers]), len(examples))


def loss_of_all(loss: BatchLoss, processes: Processes, counts: bool) -> BatchLoss:
    """The sums of a batch over its parts in all processes, without gradients; the same for all.

    `counts` is false for a process whose part is not one.
    """
    if processes.place.size == 1:
        return loss
    ids = None if loss.passage_ids is None else loss.passage_ids.tolist()
    sums = [loss.loss.item(), loss.nll, loss.questions, loss.target_tokens, loss.prior_entropy, loss.posterior_entropy]
    gathered = [part for part in processes.gather([sums, ids] if counts else None) if part is not None]
    total, nll, questions, target_tokens, prior, posterior = map(sum, zip(*(part[0] for part in gathered), strict=True))
    return BatchLoss(
        loss=torch.tensor(total),
        nll=nll,
        questions=questions,
        target_tokens=target_tokens,
        passage_ids=None if ids is None else np.array([row for part in gathered for row in part[1]], dtype=np.int64),
        prior_entropy=prior,
        posterior_entropy=posterior,
    )
