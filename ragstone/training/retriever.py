"""Training a question encoder and a passage encoder against each other.

Shapes: B questions, P passages of the batch, D dimensions.
"""

from __future__ import annotations

import itertools
import math
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial

import torch
from torch import nn

from ragstone.allocation import keeping_freed_memory
from ragstone.arithmetic import Precision
from ragstone.data.dpr import RetrieverExample
from ragstone.denormals import flushing_denormals
from ragstone.encoders.precision import autocast
from ragstone.encoders.text_encoder import TextEncoder
from ragstone.errors import InputError
from ragstone.progress import progress_bar
from ragstone.training.contrastive import ContrastiveOutput, Embed, cached_backward, contrastive_loss
from ragstone.training.optimizer import OptimizerSettings, make_optimizer, make_schedule
from ragstone.training.order import epoch_batches
from ragstone.training.passage_pool import PassagePool

EVALUATION_BATCH = 64
"""Texts per forward pass without gradients."""


@dataclass(frozen=True)
class RetrieverPlan:
    """How long and in what way to train."""

    max_steps: int
    batch_size: int = 32
    """Questions whose passages are each other's negatives."""
    micro_batch_size: int | None = None
    """Texts per forward pass; None embeds a whole batch at once, without gradient caching."""
    optimization: OptimizerSettings = field(default_factory=OptimizerSettings)
    max_grad_norm: float = 2.0
    temperature: float = 1.0
    """Inner products are divided by it."""
    precision: Precision = "auto"
    seed: int = 42
    eval_steps: int | None = None
    """Steps between evaluations; None is once per epoch. The last step is always evaluated."""


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
    """Mean over the questions since the record before."""
    train_accuracy: float
    """Percentage, in-batch, over the same questions."""
    seconds: float
    """Since training began."""
    evaluation: RetrieverEvaluation | None
    """None without held-out data."""

    def line(self) -> str:
        """The record in words."""
        text = f"step {self.step}: loss {self.train_loss:.4f}, in-batch accuracy {self.train_accuracy:.1f} %"
        held_out = self.evaluation
        if held_out is None:
            return text
        return (
            f"{text}; held out: loss {held_out.loss:.4f}, in-batch accuracy {held_out.in_batch_accuracy:.1f} %, "
            f"mean rank {held_out.mean_rank:.2f} of {held_out.passages}, precision@1 {held_out.precision_at_1:.1f} %"
        )


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
    pool = PassagePool(examples)
    texts, titles = [context.text for context in pool.passages], [context.title for context in pool.passages]
    with progress_bar("Evaluating", total=len(texts) + len(examples)) as bar:
        embed = partial(passage_encoder.embed, batch_size=EVALUATION_BATCH, precision=precision, progress=bar)
        passages = torch.from_numpy(embed(texts, titles))
        embed = partial(question_encoder.embed, batch_size=EVALUATION_BATCH, precision=precision, progress=bar)
        questions = torch.from_numpy(embed([example.question for example in examples]))
    loss, correct, ranks = 0.0, 0, []
    for start in range(0, len(examples), batch_size):
        part, vectors = examples[start : start + batch_size], questions[start : start + batch_size]
        batch = PassagePool(part)
        of_batch = passages[pool.rows(batch.passages)]
        output = contrastive_loss(vectors, of_batch, batch.targets(part), batch.excluded(part), temperature)
        loss += output.loss.item() * len(part)
        correct += output.correct
        ranks.append(contrastive_loss(vectors, passages, pool.targets(part), pool.excluded(part)).ranks)
    all_ranks = torch.cat(ranks).float()
    return RetrieverEvaluation(
        loss=loss / len(examples),
        in_batch_accuracy=100 * correct / len(examples),
        mean_rank=all_ranks.mean().item(),
        precision_at_1=100 * (all_ranks == 1).float().mean().item(),
        passages=len(texts),
    )


@keeping_freed_memory()
@flushing_denormals()
def train_encoders(
    question_encoder: TextEncoder,
    passage_encoder: TextEncoder,
    train: Sequence[RetrieverExample],
    held_out: Sequence[RetrieverExample],
    plan: RetrieverPlan,
) -> list[RetrieverRecord]:
    """Train both encoders in place; with held-out data they end with the best weights seen (see `best_record`).

    The encoders may share one model. Deterministic for a seed on one machine; sets torch's global seed.

    Returns:
        A record per evaluation.

    Raises:
        InputError: the loss is no longer a number, or the precision does not fit the device.
    """
    torch.manual_seed(plan.seed)
    encoders = nn.ModuleList([question_encoder, passage_encoder])
    optimizer = make_optimizer(encoders, plan.optimization)
    schedule = make_schedule(optimizer, plan.optimization, plan.max_steps)
    scaler = torch.amp.GradScaler(question_encoder.device.type, enabled=plan.precision == "fp16")
    steps_per_epoch = math.ceil(len(train) / plan.batch_size)
    eval_steps = plan.eval_steps or steps_per_epoch
    records: list[RetrieverRecord] = []
    best: dict[str, torch.Tensor] = {}
    began = time.perf_counter()
    loss_sum, correct, seen = 0.0, 0, 0
    with progress_bar("Training", total=plan.max_steps) as bar:
        for step, batch in enumerate(itertools.islice(_batches(train, plan), plan.max_steps), start=1):
            encoders.train()
            output = _backward(question_encoder, passage_encoder, batch, plan, scaler.scale)
            loss = output.loss.item()
            if not math.isfinite(loss):
                raise InputError(
                    f"The loss at step {step} is {loss}; take a lower --learning_rate or --precision fp32."
                )
            scaler.unscale_(optimizer)
            nn.utils.clip_grad_norm_(encoders.parameters(), plan.max_grad_norm)
            scaler.step(optimizer)
            scaler.update()
            optimizer.zero_grad()
            schedule.step()
            loss_sum, correct, seen = loss_sum + loss * len(batch), correct + output.correct, seen + len(batch)
            bar.advance()
            bar.note(f"loss {loss_sum / seen:.3f}  accuracy {100 * correct / seen:.1f} %")
            if step % eval_steps and step < plan.max_steps:
                continue
            evaluation = None
            if held_out:
                evaluation = evaluate_retriever(
                    question_encoder,
                    passage_encoder,
                    held_out,
                    batch_size=plan.batch_size,
                    precision=plan.precision,
                    temperature=plan.temperature,
                )
            seconds = time.perf_counter() - began
            record = RetrieverRecord(
                step, step / steps_per_epoch, loss_sum / seen, 100 * correct / seen, seconds, evaluation
            )
            records.append(record)
            bar.print(record.line())
            loss_sum, correct, seen = 0.0, 0, 0
            if held_out and step < plan.max_steps and best_record(records) is record:
                best = {name: tensor.detach().cpu().clone() for name, tensor in encoders.state_dict().items()}
    if best_record(records) is not records[-1]:
        encoders.load_state_dict(best)
    encoders.eval()
    return records


def best_record(records: Sequence[RetrieverRecord]) -> RetrieverRecord:
    """The record whose weights training keeps: lowest mean rank, then lowest loss; the last without held-out data."""
    scored = [(record.evaluation.mean_rank, record.evaluation.loss, record) for record in records if record.evaluation]
    return min(scored, key=lambda entry: entry[:2])[2] if scored else records[-1]


def _batches(train: Sequence[RetrieverExample], plan: RetrieverPlan) -> Iterator[list[RetrieverExample]]:
    """Batches without end, in a new order every epoch."""
    for epoch in itertools.count():
        yield from epoch_batches(train, plan.batch_size, plan.seed, epoch)


def _backward(
    question_encoder: TextEncoder,
    passage_encoder: TextEncoder,
    examples: Sequence[RetrieverExample],
    plan: RetrieverPlan,
    scale: Callable[[torch.Tensor], torch.Tensor],
) -> ContrastiveOutput:
    """Add the gradient of a batch to both encoders' weights."""
    device = question_encoder.device
    pool = PassagePool(examples)
    targets, excluded = pool.targets(examples).to(device), pool.excluded(examples).to(device)

    def loss_of(questions: torch.Tensor, passages: torch.Tensor) -> ContrastiveOutput:
        return contrastive_loss(questions, passages, targets, excluded, plan.temperature)

    def embed(encoder: TextEncoder, tokens: dict[str, torch.Tensor]) -> torch.Tensor:
        with autocast(device, plan.precision):
            return encoder(**tokens)

    def chunks(encoder: TextEncoder, texts: list[str], titles: list[str] | None) -> list[Embed]:
        size = plan.micro_batch_size or len(texts)
        portions = [slice(start, start + size) for start in range(0, len(texts), size)]
        return [partial(embed, encoder, encoder.tokenize(texts[p], titles and titles[p])) for p in portions]

    questions = chunks(question_encoder, [example.question for example in examples], None)
    texts, titles = [context.text for context in pool.passages], [context.title for context in pool.passages]
    return cached_backward(questions, chunks(passage_encoder, texts, titles), loss_of, scale)
