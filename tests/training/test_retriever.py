"""Training a retriever: a tiny one learns, caching changes nothing, the best weights are kept."""

from __future__ import annotations

import dataclasses
import random

import pytest
import torch

from ragstone.data.dpr import Context, RetrieverExample
from ragstone.encoders.pair import EncoderPair, fresh_pair
from ragstone.errors import InputError
from ragstone.training.optimizer import OptimizerSettings
from ragstone.training.retriever import (
    RetrieverEvaluation,
    RetrieverPlan,
    RetrieverRecord,
    best_record,
    evaluate_retriever,
    train_encoders,
)

COLOURS = {"rufus": "red", "blaub": "blue", "gelwo": "yellow", "gruen": "green", "weiss": "white"}
THINGS = {"hutto": "hat", "ballu": "ball", "wagen": "cart", "krugo": "jug", "stein": "stone", "messo": "knife"}
ENGLISH = COLOURS | THINGS


def example(colour: str, thing: str, wrong: str) -> RetrieverExample:
    """A question in an invented language, so that no word in common tells its passage."""
    positive = Context(ENGLISH[thing], f"a {ENGLISH[colour]} {ENGLISH[thing]} is here")
    negative = Context(ENGLISH[thing], f"a {ENGLISH[wrong]} {ENGLISH[thing]} is here")
    return RetrieverExample(f"{colour} {thing}", positive, frozenset({hash(positive)}), (negative,))


@pytest.fixture(scope="module")
def data() -> tuple[list[RetrieverExample], list[RetrieverExample]]:
    """All 30 combinations, of which training never sees five."""
    generator = random.Random(0)
    examples = [
        example(colour, thing, generator.choice([other for other in COLOURS if other != colour]))
        for colour in COLOURS
        for thing in THINGS
    ]
    generator.shuffle(examples)
    return examples[5:], examples


def fresh(shared: bool = False, seed: int = 0) -> EncoderPair:
    texts = [" ".join([*ENGLISH, *ENGLISH.values(), "is here"])] * 3
    return fresh_pair(texts, shared=shared, hidden_size=32, vocab_size=300, max_length=32, seed=seed)


def plan(max_steps: int, **changes: object) -> RetrieverPlan:
    settings = {"batch_size": 8, "optimization": OptimizerSettings(learning_rate=3e-3), "precision": "fp32", **changes}
    return RetrieverPlan(max_steps, **settings)


@pytest.mark.parametrize("shared", [False, True])
def test_a_retriever_learns(
    shared: bool, data: tuple[list[RetrieverExample], list[RetrieverExample]], capsys: pytest.CaptureFixture[str]
) -> None:
    """From chance to nearly all questions, those of held-out combinations included."""
    train, everything = data
    pair = fresh(shared)
    before = evaluate_retriever(pair.question, pair.passage, everything, batch_size=8)
    assert before.precision_at_1 < 25
    records = train_encoders(pair.question, pair.passage, train, everything, plan(200, eval_steps=100))
    after = evaluate_retriever(pair.question, pair.passage, everything, batch_size=8)
    assert after.precision_at_1 > 85
    assert after.in_batch_accuracy > 90
    assert 1 <= after.mean_rank < 1.5 < before.mean_rank
    assert after.loss < 0.5 < before.loss
    assert [record.step for record in records] == [100, 200]
    assert records[-1].train_accuracy > records[0].train_accuracy
    assert after == best_record(records).evaluation
    assert capsys.readouterr().out == ""


def test_a_question_alone_has_a_loss_for_its_hard_negative_only(
    data: tuple[list[RetrieverExample], list[RetrieverExample]],
) -> None:
    """With one question in a batch there is nothing else to be wrong about."""
    train, _ = data
    pair = fresh()
    (with_one,) = train_encoders(pair.question, pair.passage, train, [], plan(1, batch_size=1))
    assert with_one.train_loss > 0.01
    easy = [dataclasses.replace(example, hard_negatives=()) for example in train]
    (without,) = train_encoders(pair.question, pair.passage, easy, [], plan(1, batch_size=1))
    assert without.train_loss == 0


def test_evaluation_by_hand(data: tuple[list[RetrieverExample], list[RetrieverExample]]) -> None:
    """Ranks among all passages and within batches, from the vectors themselves."""
    _, everything = data
    pair = fresh()
    passages = list(dict.fromkeys(c for e in everything for c in (e.positive, *e.hard_negatives)))
    vectors = pair.passage.embed([c.text for c in passages], [c.title for c in passages])
    ranks, first_in_batch = [], 0
    for i, e in enumerate(everything):
        scores = vectors @ pair.question.embed([e.question])[0]
        own = scores[passages.index(e.positive)]
        ranks.append(1 + sum(score > own for score in scores))
        batch = everything[i // 8 * 8 : i // 8 * 8 + 8]
        rows = {passages.index(c) for other in batch for c in (other.positive, *other.hard_negatives)}
        first_in_batch += all(scores[row] <= own for row in rows)
    found = evaluate_retriever(pair.question, pair.passage, everything, batch_size=8)
    assert found.mean_rank == pytest.approx(sum(ranks) / 30)
    assert found.precision_at_1 == pytest.approx(100 * ranks.count(1) / 30)
    assert found.in_batch_accuracy == pytest.approx(100 * first_in_batch / 30)
    assert found.passages == len(passages)


def weights(pair: EncoderPair) -> torch.Tensor:
    return torch.cat([p.detach().flatten() for e in (pair.question, pair.passage) for p in e.parameters()])


def test_same_seed_same_weights(data: tuple[list[RetrieverExample], list[RetrieverExample]]) -> None:
    train, _ = data
    trained = []
    for seed in (1, 1, 2):
        pair = fresh()
        train_encoders(pair.question, pair.passage, train, [], plan(3, seed=seed))
        trained.append(weights(pair))
    assert torch.equal(trained[0], trained[1])
    assert not torch.equal(trained[0], trained[2])


@pytest.mark.parametrize("shared", [False, True])
def test_micro_batches_give_the_same_weights(
    shared: bool, data: tuple[list[RetrieverExample], list[RetrieverExample]]
) -> None:
    """Without dropout: there, another number of forward passes draws other units."""
    train, _ = data
    trained = []
    # AdamW's usual epsilon blows the rounding of gradients that are nearly zero up to whole steps.
    optimization = OptimizerSettings(learning_rate=1e-3, adam_epsilon=1e-2)
    for size in (None, 3):
        pair = fresh(shared)
        for module in [*pair.question.modules(), *pair.passage.modules()]:
            if isinstance(module, torch.nn.Dropout):
                module.p = 0.0
        train_encoders(
            pair.question, pair.passage, train, [], plan(3, micro_batch_size=size, optimization=optimization)
        )
        trained.append(weights(pair))
    torch.testing.assert_close(trained[0], trained[1], rtol=1e-3, atol=1e-5)
    assert not torch.equal(weights(fresh(shared)), trained[0])


def test_no_more_texts_at_a_time_than_a_micro_batch(
    data: tuple[list[RetrieverExample], list[RetrieverExample]],
) -> None:
    """Whatever the batch of negatives: what a forward pass keeps for the backward one is bounded."""
    sizes: dict[int | None, int] = {}
    for size in (None, 2):
        pair = fresh()
        seen: list[int] = []
        for encoder in (pair.question, pair.passage):
            encoder.model.register_forward_pre_hook(
                lambda _, __, inputs, seen=seen: seen.append(len(inputs["input_ids"])), with_kwargs=True
            )
        train_encoders(pair.question, pair.passage, data[0], [], plan(1, micro_batch_size=size))
        sizes[size] = max(seen)
    assert sizes[2] == 2
    assert (sizes[None] or 0) >= 8


def test_best_weights_are_kept(data: tuple[list[RetrieverExample], list[RetrieverExample]]) -> None:
    """A learning rate that first teaches and then destroys."""
    train, everything = data
    pair = fresh()
    records = train_encoders(
        pair.question,
        pair.passage,
        train,
        everything,
        plan(60, eval_steps=10, optimization=OptimizerSettings(learning_rate=0.2, warmup_steps=60)),
    )
    best = best_record(records)
    assert best is not records[-1]
    assert evaluate_retriever(pair.question, pair.passage, everything, batch_size=8) == best.evaluation


def test_evaluated_once_per_epoch_and_at_the_end(data: tuple[list[RetrieverExample], list[RetrieverExample]]) -> None:
    train, everything = data
    pair = fresh()
    records = train_encoders(pair.question, pair.passage, train, everything[:2], plan(10))
    assert [(record.step, record.epoch) for record in records] == [(4, 1.0), (8, 2.0), (10, 2.5)]


def test_best_record_is_that_of_lowest_mean_rank_then_loss() -> None:
    def record(step: int, mean_rank: float, loss: float) -> RetrieverRecord:
        return RetrieverRecord(step, 1.0, 0.0, 0.0, 0.0, RetrieverEvaluation(loss, 0.0, mean_rank, 0.0, 9))

    records = [record(1, 3.0, 0.1), record(2, 2.0, 0.5), record(3, 2.0, 0.4), record(4, 2.0, 0.4)]
    assert best_record(records).step == 3
    unevaluated = [RetrieverRecord(step, 1.0, 0.0, 0.0, 0.0, None) for step in (1, 2)]
    assert best_record(unevaluated).step == 2


def test_a_loss_that_is_no_number_stops_training(
    data: tuple[list[RetrieverExample], list[RetrieverExample]],
) -> None:
    train, _ = data
    pair = fresh()
    with pytest.raises(InputError, match=r"The loss at step \d+ is (nan|inf); take a lower --learning_rate"):
        train_encoders(pair.question, pair.passage, train, [], plan(20, optimization=OptimizerSettings(1e30)))
