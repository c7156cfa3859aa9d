"""Training a question encoder and a passage encoder against each other.

Shapes: B questions, P passages of the batch, D dimensions.
"""

from __future__ import annotations

import math
import random
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import nn

from ragstone.data.dpr import Context, RetrieverExample
from ragstone.encoders.precision import Precision, autocast
from ragstone.encoders.text_encoder import TextEncoder
from ragstone.errors import InputError
from ragstone.progress import progress_bar
from ragstone.training.contrastive import ContrastiveOutput, Embed, cached_backward, contrastive_loss, ranks_of

EVALUATION_BATCH = 64
"""Texts per forward pass without gradients."""


@dataclass(frozen=True)
class RetrieverEvaluation:
    """How well held-out questions find their positives."""

    loss: float
    in_batch_accuracy: float
    """Percentage of questions whose positive comes first in a batch as large as in training."""
    mean_rank: float
    """Mean place of the positive among all held-out passages; 1 is best."""
    precision_at_1: float
    """Percentage of questions whose positive comes first among all held-out passages."""
    passages: int
    """Held-out passages, positives and hard negatives."""


@dataclass(frozen=True)
class RetrieverRecord:
    """The state of training at one evaluation."""

    step: int
    epoch: float
    train_loss: float
    """Mean over the steps since the record before."""
    train_accuracy: float
    """Percentage, in-batch, over the same steps."""
    seconds: float
    """Since training began."""
    evaluation: RetrieverEvaluation | None
    """None without held-out data."""


@dataclass(frozen=True)
class ContrastiveBatch:
    """Questions and the passages that they compete over, each passage once."""

    questions: list[str]
    passages: list[Context]
    targets: torch.Tensor
    """int64 [B] row of each question's positive in `passages`."""
    excluded: torch.Tensor
    """bool [B, P] passages that answer the question too, though another was chosen as its positive."""


def contrastive_batch(examples: Sequence[RetrieverExample]) -> ContrastiveBatch:
    """Gather the examples' passages. Equal passages become one, so that none is its own question's negative."""
    rows: dict[Context, int] = {}
    for example in examples:
        rows.setdefault(example.positive, len(rows))
    for example in examples:
        for context in example.hard_negatives:
            rows.setdefault(context, len(rows))
    targets = torch.tensor([rows[example.positive] for example in examples])
    keys = [hash(context) for context in rows]
    excluded = torch.tensor([[key in example.positive_keys for key in keys] for example in examples])
    excluded[torch.arange(len(examples)), targets] = False
    return ContrastiveBatch([example.question for example in examples], list(rows), targets, excluded)


def evaluate_retriever(
    question_encoder: TextEncoder,
    passage_encoder: TextEncoder,
    examples: Sequence[RetrieverExample],
    *,
    batch_size: int,
    precision: Precision = "fp32",
    temperature: float = 1.0,
) -> RetrieverEvaluation:
    """Score held-out `examples`, in batches of `batch_size` as in training and among all their passages."""
    question_encoder.eval()
    passage_encoder.eval()
    passages = list(dict.fromkeys(c for e in examples for c in (e.positive, *e.hard_negatives)))
    rows = {context: row for row, context in enumerate(passages)}
    keys = torch.tensor([hash(context) for context in passages])
    texts, titles = [context.text for context in passages], [context.title for context in passages]
    with progress_bar("evaluate", total=len(passages) + len(examples)) as bar:
        embed = partial(passage_encoder.embed, batch_size=EVALUATION_BATCH, precision=precision, progress=bar)
        passage_vectors = torch.from_numpy(embed(texts, titles))
        embed = partial(question_encoder.embed, batch_size=EVALUATION_BATCH, precision=precision, progress=bar)
        question_vectors = torch.from_numpy(embed([example.question for example in examples]))
    loss, correct, ranks = 0.0, 0, []
    for start in range(0, len(examples), batch_size):
        part = examples[start : start + batch_size]
        vectors = question_vectors[start : start + batch_size]
        batch = contrastive_batch(part)
        of_batch = passage_vectors[[rows[context] for context in batch.passages]]
        output = contrastive_loss(vectors, of_batch, batch.targets, batch.excluded, temperature)
        loss += output.loss.item() * len(part)
        correct += output.correct
        targets = torch.tensor([rows[example.positive] for example in part])
        scores = vectors @ passage_vectors.T
        for i, example in enumerate(part):
            others = torch.isin(keys, torch.tensor(list(example.positive_keys)))
            others[targets[i]] = False
            scores[i, others] = float("-inf")
        ranks.append(ranks_of(scores, targets))
    all_ranks = torch.cat(ranks).float()
    return RetrieverEvaluation(
        loss=loss / len(examples),
        in_batch_accuracy=100 * correct / len(examples),
        mean_rank=all_ranks.mean().item(),
        precision_at_1=100 * (all_ranks == 1).float().mean().item(),
        passages=len(passages),
    )


def train_retriever(
    question_encoder: TextEncoder,
    passage_encoder: TextEncoder,
    train: Sequence[RetrieverExample],
    held_out: Sequence[RetrieverExample] = (),
    *,
    batch_size: int,
    max_steps: int,
    micro_batch_size: int | None = None,
    learning_rate: float = 2e-5,
    warmup_steps: int = 0,
    weight_decay: float = 0.0,
    max_grad_norm: float = 2.0,
    temperature: float = 1.0,
    precision: Precision = "auto",
    seed: int = 42,
    eval_steps: int | None = None,
) -> list[RetrieverRecord]:
    """Train both encoders in place for `max_steps`; with held-out data they end with the best weights seen.

    The encoders may share one model. The best evaluation is the one of lowest mean rank, then of lowest loss; without
    held-out data the last weights stay. Deterministic for a seed on one machine; sets torch's global seed.

    Args:
        batch_size: questions whose passages are each other's negatives.
        micro_batch_size: texts per forward pass; None embeds a whole batch at once, without gradient caching.
        eval_steps: steps between evaluations; None is once per epoch. The last step is always evaluated.

    Raises:
        InputError: the loss is no longer a number, or `precision` does not fit the device.
    """
    torch.manual_seed(seed)
    encoders = nn.ModuleList([question_encoder, passage_encoder])
    optimizer = torch.optim.AdamW(_groups(encoders, weight_decay), lr=learning_rate)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, partial(_warm_up_and_decay, warmup_steps, max_steps))
    scaler = torch.amp.GradScaler(question_encoder.device.type, enabled=precision == "fp16")
    steps_per_epoch = math.ceil(len(train) / batch_size)
    batches = _shuffled_batches(train, batch_size, seed)
    records: list[RetrieverRecord] = []
    best: tuple[tuple[float, float], dict[str, torch.Tensor]] | None = None
    began = time.perf_counter()
    loss_sum, correct, seen, steps_seen = 0.0, 0, 0, 0
    with progress_bar("train", total=max_steps) as bar:
        for step in range(1, max_steps + 1):
            batch = contrastive_batch(next(batches))
            encoders.train()
            output = _backward(
                question_encoder, passage_encoder, batch, micro_batch_size, temperature, precision, scaler.scale
            )
            loss = output.loss.item()
            if not math.isfinite(loss):
                raise InputError(
                    f"The loss at step {step} is {loss}; take a lower --learning_rate or --precision fp32."
                )
            scaler.unscale_(optimizer)
            nn.utils.clip_grad_norm_(encoders.parameters(), max_grad_norm)
            scaler.step(optimizer)
            scaler.update()
            optimizer.zero_grad()
            schedule.step()
            loss_sum, steps_seen = loss_sum + loss, steps_seen + 1
            correct, seen = correct + output.correct, seen + len(batch.questions)
            bar.advance()
            bar.note(f"loss {loss_sum / steps_seen:.3f}  accuracy {100 * correct / seen:.1f} %")
            if step % (eval_steps or steps_per_epoch) and step < max_steps:
                continue
            evaluation = None
            if held_out:
                evaluation = evaluate_retriever(
                    question_encoder,
                    passage_encoder,
                    held_out,
                    batch_size=batch_size,
                    precision=precision,
                    temperature=temperature,
                )
                quality = (evaluation.mean_rank, evaluation.loss)
                if best is None or quality < best[0]:
                    best = (quality, {name: t.detach().cpu().clone() for name, t in encoders.state_dict().items()})
            records.append(
                RetrieverRecord(
                    step=step,
                    epoch=step / steps_per_epoch,
                    train_loss=loss_sum / steps_seen,
                    train_accuracy=100 * correct / seen,
                    seconds=time.perf_counter() - began,
                    evaluation=evaluation,
                )
            )
            bar.print(_line(records[-1]))
            loss_sum, correct, seen, steps_seen = 0.0, 0, 0, 0
    if best is not None:
        encoders.load_state_dict(best[1])
    encoders.eval()
    return records


def best_record(records: Sequence[RetrieverRecord]) -> RetrieverRecord:
    """The record whose weights training kept."""
    scored = [(r.evaluation.mean_rank, r.evaluation.loss, i) for i, r in enumerate(records) if r.evaluation]
    return records[min(scored)[2]] if scored else records[-1]


def _backward(
    question_encoder: TextEncoder,
    passage_encoder: TextEncoder,
    batch: ContrastiveBatch,
    micro_batch_size: int | None,
    temperature: float,
    precision: Precision,
    scale: Callable[[torch.Tensor], torch.Tensor],
) -> ContrastiveOutput:
    """Add the batch's gradient to both encoders' weights."""
    device = question_encoder.device

    def embed(encoder: TextEncoder, texts: list[str], titles: list[str] | None) -> torch.Tensor:
        with autocast(device, precision):
            return encoder(**encoder.tokenize(texts, titles))

    def chunks(encoder: TextEncoder, texts: list[str], titles: list[str] | None) -> list[Embed]:
        size = micro_batch_size or len(texts)
        return [
            partial(embed, encoder, texts[i : i + size], titles and titles[i : i + size])
            for i in range(0, len(texts), size)
        ]

    def loss_of(questions: torch.Tensor, passages: torch.Tensor) -> ContrastiveOutput:
        targets, excluded = batch.targets.to(device), batch.excluded.to(device)
        return contrastive_loss(questions, passages, targets, excluded, temperature)

    texts, titles = [context.text for context in batch.passages], [context.title for context in batch.passages]
    return cached_backward(
        chunks(question_encoder, batch.questions, None), chunks(passage_encoder, texts, titles), loss_of, scale
    )


def _shuffled_batches(
    examples: Sequence[RetrieverExample], batch_size: int, seed: int
) -> Iterator[list[RetrieverExample]]:
    """Batches without end, in a new order every epoch."""
    generator = random.Random(seed)
    order = list(range(len(examples)))
    while True:
        generator.shuffle(order)
        for start in range(0, len(order), batch_size):
            yield [examples[row] for row in order[start : start + batch_size]]


def _groups(encoders: nn.Module, weight_decay: float) -> list[dict[str, object]]:
    """Biases and layer norms (one-dimensional weights) do not decay, as in DPR."""
    parameters = [parameter for parameter in encoders.parameters() if parameter.requires_grad]
    return [
        {"params": [p for p in parameters if p.ndim > 1], "weight_decay": weight_decay},
        {"params": [p for p in parameters if p.ndim <= 1], "weight_decay": 0.0},
    ]


def _warm_up_and_decay(warmup_steps: int, max_steps: int, step: int) -> float:
    if step < warmup_steps:
        return (step + 1) / (warmup_steps + 1)
    return max(0.0, (max_steps - step) / max(1, max_steps - warmup_steps))


def _line(record: RetrieverRecord) -> str:
    text = f"step {record.step}: loss {record.train_loss:.4f}, in-batch accuracy {record.train_accuracy:.1f} %"
    held_out = record.evaluation
    if held_out is None:
        return text
    return (
        f"{text}; held out: loss {held_out.loss:.4f}, in-batch accuracy {held_out.in_batch_accuracy:.1f} %, "
        f"mean rank {held_out.mean_rank:.2f} of {held_out.passages}, precision@1 {held_out.precision_at_1:.1f} %"
    )
