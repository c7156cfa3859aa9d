"""The loop: what a step does to the weights, when it validates, when it stops."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from ragstone.commands.build_knowledge import BuildKnowledgeSettings, build_knowledge
from ragstone.commands.consolidate import ConsolidateSettings, consolidate
from ragstone.data.examples import read_examples
from ragstone.encoders.fresh import fresh_encoder, train_tokenizer
from ragstone.encoders.load import save_encoder
from ragstone.errors import InputError
from ragstone.model.decoding import Decoding
from ragstone.model.open import ModelRequest, open_model
from ragstone.processes.environment import Place
from ragstone.processes.processes import OneProcess
from ragstone.training.checkpoints import CheckpointKeeper
from ragstone.training.hardware import accelerator_for
from ragstone.training.loop import LoopSettings, Trainer, Validation
from ragstone.training.optimizer import OptimizerSettings
from ragstone.training.random_state import random_states
from ragstone.types import Example
from tests.conftest import WORDS

STEADY = OptimizerSettings(1e-2, weight_decay=0.01, adam_epsilon=1.0)
"""Weights whose gradient is zero but for rounding stay in their place, and a gradient's length matters."""

Train = Callable[..., tuple[Trainer, list[Validation]]]


@pytest.fixture
def train(tmp_path: Path, checkpoint_folder: Path, source_folder: Path, pairs_folder: Path) -> Train:
    """Train the tiny checkpoint; what is not said stays plain. Returns the trainer and its validations."""
    number = itertools.count()

    def trained(
        loop: LoopSettings,
        *,
        scores: list[float] | None = None,
        optimization: OptimizerSettings | None = None,
        examples: list[Example] | None = None,
        precision: Any = "no",
        name: Path = checkpoint_folder,
        scale: float | None = None,
        after_step: Callable[[Trainer], None] = lambda _: None,
        **request: Any,
    ) -> tuple[Trainer, list[Validation]]:
        folder = tmp_path / str(next(number))
        folder.mkdir()
        # The score of each validation, given out in turn: the loop knows no metric.
        given = iter(scores or itertools.repeat(0.0))
        validations: list[Validation] = []
        cpu = torch.device("cpu")
        torch.manual_seed(loop.seed)
        if name == checkpoint_folder:
            request = {"passages_path": str(source_folder), **request}
        model = open_model(ModelRequest(str(name), device=cpu, **request))
        with accelerator_for(cpu, precision, [], folder) as accelerator:
            if accelerator.scaler is not None and scale is not None:
                accelerator.scaler.load_state_dict({**accelerator.scaler.state_dict(), "scale": scale})
            trainer = Trainer(
                model,
                accelerator,
                OneProcess(),
                CheckpointKeeper(folder),
                loop,
                optimization or OptimizerSettings(1e-2, weight_decay=0.01),
                train=examples or read_examples(pairs_folder, "train"),
                validation=read_examples(pairs_folder, "val"),
                decoding=Decoding(1, max_length=8),
                score=lambda predictions, answers: {"em": next(given)},
                report=validations.append,
                identity={},
                after_step=lambda: after_step(trainer),
            )
            trainer.run()
        return trainer, validations

    return trained


def weights(trainer: Trainer) -> dict[str, torch.Tensor]:
    model: Any = trainer.model
    return {name: parameter.detach().clone() for name, parameter in model.named_parameters()}


def distance(one: Trainer, other: Trainer) -> float:
    """Of the weight that differs most."""
    pairs = zip(weights(one).values(), weights(other).values(), strict=True)
    return max((a - b).abs().max().item() for a, b in pairs)


@pytest.mark.parametrize("label_smoothing", [0.0, 0.1])
@pytest.mark.parametrize("model_type", ["rag_sequence", "rag_token"])
def test_accumulation_equals_a_large_batch(train: Train, model_type: str, label_smoothing: float) -> None:
    """Ten questions of different answer lengths, as batches of 4, 4 and 2, or as one."""
    options: dict[str, Any] = {"model_type": model_type, "label_smoothing": label_smoothing}
    whole, _ = train(LoopSettings(epochs=3, train_batch_size=10), optimization=STEADY, **options)
    parts, _ = train(LoopSettings(epochs=3, train_batch_size=4, accumulation=3), optimization=STEADY, **options)
    assert whole.step == parts.step == 3
    assert distance(whole, parts) < 2e-6
    start, _ = train(LoopSettings(epochs=1), optimization=OptimizerSettings(1e-12), **options)
    assert distance(whole, start) > 1e-3


def test_the_gradient_is_that_of_the_mean_over_questions(
    train: Train, checkpoint_folder: Path, source_folder: Path, pairs_folder: Path
) -> None:
    """One clipped step by hand, from the model's own sum of losses."""
    trained, _ = train(LoopSettings(epochs=1, train_batch_size=10, max_grad_norm=0.1), optimization=STEADY)
    model: Any = open_model(ModelRequest(str(checkpoint_folder), passages_path=str(source_folder)))
    examples = read_examples(pairs_folder, "train")
    optimizer = torch.optim.AdamW(
        [
            {"params": [p for p in model.parameters() if p.ndim > 1], "weight_decay": 0.01},
            {"params": [p for p in model.parameters() if p.ndim < 2], "weight_decay": 0.0},
        ],
        lr=1e-2,
        eps=1.0,
    )
    (model([e.question for e in examples], [e.answer for e in examples]).loss / 10).backward()
    torch.nn.utils.clip_grad_norm_(model.parameters(), 0.1)
    optimizer.step()
    expected = [parameter.detach() for parameter in model.parameters()]
    for found, wanted in zip(weights(trained).values(), expected, strict=True):
        torch.testing.assert_close(found, wanted, rtol=0, atol=1e-7)


def test_an_incomplete_group_at_the_end_of_an_epoch_is_a_step(train: Train) -> None:
    trainer, _ = train(LoopSettings(epochs=2, train_batch_size=2, accumulation=2))
    assert trainer.batches_per_epoch == 5
    assert trainer.step == trainer.total_steps == 6


@pytest.mark.parametrize(
    ("interval", "accumulation", "steps"),
    [
        (1.0, 1, [5, 10]),
        (0.5, 1, [2, 4, 6, 8, 10]),
        (0.2, 1, list(range(1, 11))),
        (3, 1, [3, 6, 9, 10]),
        (100, 1, [10]),
        # Batches 1-2, 3-4, 5 of each epoch: three steps, and multiples of 3 are passed at 3-4, 6-7, 8-9 and 10.
        (3, 2, [2, 4, 5, 6]),
        # Every second batch is passed once by each group but the last of an epoch, and 6 and 8 by the next ones.
        (2, 2, [1, 2, 4, 5, 6]),
    ],
)
def test_when_it_validates(train: Train, interval: float, accumulation: int, steps: list[int]) -> None:
    loop = LoopSettings(epochs=2, train_batch_size=2, accumulation=accumulation, validation_interval=interval)
    _, validations = train(loop)
    assert [validation.step for validation in validations] == steps


def test_early_stopping_counts_validations_without_progress(train: Train) -> None:
    loop = LoopSettings(epochs=10, train_batch_size=10, patience=2)
    trainer, validations = train(loop, scores=[10.0, 20.0, 20.0, 15.0, 90.0])
    assert [validation.scores["em"] for validation in validations] == [10.0, 20.0, 20.0, 15.0]
    assert (trainer.keeper.best.step, trainer.step) == (2, 4)
    trainer, _ = train(loop, scores=[10.0, 9.0, 11.0, 10.0, 12.0, 13.0, 14.0, 15.0, 16.0, 17.0])
    assert trainer.step == 10


def test_max_steps_end_training_and_schedule(train: Train) -> None:
    trainer, validations = train(LoopSettings(epochs=100, train_batch_size=5, max_steps=3))
    assert [validation.step for validation in validations] == [2, 3]
    assert validations[-1].learning_rate == 0.0
    assert trainer.step == 3


@pytest.mark.parametrize("half", ["bf16", "fp16"])
def test_half_precision_on_the_cpu_gives_nearly_the_losses_of_fp32(train: Train, half: str) -> None:
    loop = LoopSettings(epochs=6, train_batch_size=5)
    # Of fp16 the first steps are not left out, so that both take the same.
    runs = {precision: train(loop, precision=precision, scale=1024.0) for precision in ("no", half)}
    losses = {
        precision: torch.tensor([validation.measures["loss_per_token"] for validation in validations])
        for precision, (_, validations) in runs.items()
    }
    torch.testing.assert_close(losses[half], losses["no"], rtol=0.05, atol=0.02)
    assert not torch.equal(losses[half], losses["no"])
    assert losses[half][-1] < losses[half][0] / 2
    assert {tensor.dtype for tensor in weights(runs[half][0]).values()} == {torch.float32}


def test_a_step_whose_scaled_gradients_overflow_is_left_out_and_halves_the_scale(train: Train) -> None:
    """Weights and learning rate stay, until the scale is one that fits."""
    seen: list[tuple[float, float, dict[str, torch.Tensor]]] = []

    def look(trainer: Trainer) -> None:
        rate = trainer.schedule.get_last_lr()[0]
        seen.append((trainer.accelerator.scaler.get_scale(), rate, weights(trainer)))

    train(LoopSettings(epochs=30, train_batch_size=10), precision="fp16", scale=2.0**30, after_step=look)
    scales = [scale for scale, _, _ in seen]
    halved = next(number for number, (a, b) in enumerate(itertools.pairwise(scales)) if a == b)
    assert 5 < halved < 28
    assert scales == [2.0 ** (29 - min(number, halved)) for number in range(30)]
    same = [all(torch.equal(a, b) for a, b in zip(one.values(), other.values(), strict=True))
            for (_, _, one), (_, _, other) in itertools.pairwise(seen)]  # fmt: skip
    assert same == [number < halved for number in range(29)]
    rates = [rate for _, rate, _ in seen]
    assert rates[: halved + 1] == [1e-2] * (halved + 1)
    assert rates[halved + 1] < 1e-2


def test_gradients_are_clipped_in_their_own_size(train: Train) -> None:
    """After a clipped step of fp16 the weights are nearly those of fp32: the scale is taken out before clipping."""
    loop = LoopSettings(epochs=1, train_batch_size=10, max_grad_norm=0.1)
    scaled, _ = train(loop, optimization=STEADY, precision="fp16", scale=1024.0)
    plain, _ = train(loop, optimization=STEADY)
    start, _ = train(loop, optimization=OptimizerSettings(1e-12))
    assert distance(scaled, plain) < 0.05 * distance(plain, start)


@pytest.mark.parametrize("generator", ["bart", "t5"])
def test_closed_book_models_learn_by_the_same_loop(
    train: Train, generator: str, models_folder: Path, t5_folder: Path
) -> None:
    folder = models_folder / "generator" if generator == "bart" else t5_folder
    trainer, validations = train(LoopSettings(epochs=30, train_batch_size=10), name=folder)
    measures = validations[-1].measures
    assert trainer.model.model_type == generator
    assert set(measures) == {"loss_per_token", "questions_per_second"}
    assert measures["loss_per_token"] < validations[0].measures["loss_per_token"] / 2


@pytest.mark.parametrize("generator", ["rag", "t5"])
def test_gradient_checkpointing_changes_no_gradient(
    train: Train, generator: str, checkpoint_folder: Path, t5_folder: Path
) -> None:
    """Layers are run again in the backward pass, and the weights come out the same."""
    calls = {}
    trainers = []
    for checkpointing in (False, True):
        count = itertools.count()

        def counting(module: Any, *_: Any, count: Any = count) -> None:
            if isinstance(module, torch.nn.Linear) and torch.is_grad_enabled():
                next(count)

        with torch.nn.modules.module.register_module_forward_pre_hook(counting):
            trainer, _ = train(
                LoopSettings(epochs=1, train_batch_size=10),
                optimization=STEADY,
                name=checkpoint_folder if generator == "rag" else t5_folder,
                gradient_checkpointing=checkpointing,
            )
        calls[checkpointing] = next(count)
        trainers.append(trainer)
    assert calls[True] > 1.5 * calls[False] > 0
    assert distance(*trainers) < 1e-6


class Second(OneProcess):
    """The second of two processes, which is told of states of its own and the first one's."""

    place = Place(rank=1, size=2, local_rank=1, local_size=2)

    def __init__(self, first: Any) -> None:
        self.first = first

    def gather(self, value: Any) -> list[Any]:
        return [self.first, value]


def test_each_rank_takes_up_its_own_random_numbers(train: Train) -> None:
    drawn: list[torch.Tensor] = []

    def stop_and_go_on(trainer: Trainer) -> None:
        alone = trainer.processes
        torch.manual_seed(1)
        trainer.processes = Second(random_states())
        torch.manual_seed(2)
        state = trainer.state()
        drawn.append(torch.rand(3))
        trainer.restore(state)
        drawn.append(torch.rand(3))
        # One that was not there before begins anew, and not as the first does.
        trainer.restore({**state, "rng": state["rng"][:1]})
        drawn.append(torch.rand(3))
        trainer.processes = alone

    train(LoopSettings(epochs=1, train_batch_size=10), after_step=stop_and_go_on)
    torch.manual_seed(1)
    first = torch.rand(3)
    assert torch.equal(drawn[0], drawn[1])
    assert not any(torch.equal(other, one) for other, one in ((first, drawn[1]), (first, drawn[2]), drawn[1:]))


def test_a_loss_that_is_not_finite_stops_the_run(train: Train) -> None:
    with pytest.raises(InputError, match="The loss is not finite at step"):
        train(LoopSettings(epochs=20, max_grad_norm=0), optimization=OptimizerSettings(1e30))


@pytest.fixture(scope="module")
def attentive(tmp_path_factory: pytest.TempPathFactory, models_folder: Path) -> tuple[Path, Path]:
    """A RAG checkpoint whose question encoder finds passages with the question's words, and seven hundred of them."""
    folder = tmp_path_factory.mktemp("attentive")
    texts = [f"{one}\t{one} {other} {one}\n" for one in WORDS for other in WORDS]
    (folder / "documents.tsv").write_text("".join(texts), encoding="utf-8")
    save_encoder(fresh_encoder(train_tokenizer(texts, 300), hidden_size=32), folder / "encoder")
    build_knowledge(
        BuildKnowledgeSettings(
            csv_path=[str(folder / "documents.tsv")],
            output_dir=folder / "source",
            dpr_ctx_encoder_model_name=str(folder / "encoder"),
            index="flat",
            precision="fp32",
        )
    )
    consolidate(
        ConsolidateSettings(
            model_type="rag_sequence",
            dest=folder / "rag",
            generator_name_or_path=str(models_folder / "generator"),
            question_encoder_name_or_path=str(folder / "encoder"),
        )
    )
    return folder / "rag", folder / "source"


def test_retrieval_that_collapses_is_warned_of(
    train: Train, attentive: tuple[Path, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    """Far too long steps drive the question encoder to the same vector for every question."""
    examples = [Example(f"{one} {other} ?", "otto") for one in WORDS for other in WORDS][::7]
    ratios, warnings = {}, {}
    for rate in (1e-6, 10.0):
        _, validations = train(
            LoopSettings(epochs=2, train_batch_size=8),
            name=attentive[0],
            passages_path=str(attentive[1]),
            examples=examples,
            optimization=OptimizerSettings(1e-6, question_encoder_learning_rate=rate),
        )
        ratios[rate] = validations[-1].measures["distinct_passages"]
        lines = capsys.readouterr().err.splitlines()
        warnings[rate] = [line for line in lines if "Retrieval has collapsed" in line]
    assert ratios[1e-6] > 0.15
    assert ratios[10.0] < 0.05
    assert warnings[1e-6] == []
    assert len(warnings[10.0]) == 1
    assert "--freeze_question_encoder" in warnings[10.0][0]
