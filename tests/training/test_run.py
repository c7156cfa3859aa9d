"""Whole runs: what lies in the output folder, and that a run which was stopped goes on exactly."""

from __future__ import annotations

import dataclasses
import json
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch.optim.optimizer import register_optimizer_step_pre_hook

from ragstone.commands.finetune import FinetuneSettings, finetune
from ragstone.commands.finetune_plan import run_plan
from ragstone.data.examples import read_examples
from ragstone.errors import InputError
from ragstone.model.decoding import Decoding
from ragstone.model.open import ModelRequest, open_model
from ragstone.training.loop import Trainer
from ragstone.training.run import Finetuned, RunPlan, run

Settings = Callable[..., FinetuneSettings]


@pytest.fixture
def settings(tmp_path: Path, pairs_folder: Path, checkpoint_folder: Path, source_folder: Path) -> Settings:
    """Settings of a run of the tiny checkpoint into tmp_path/run, with changes."""

    def made(**changes: Any) -> FinetuneSettings:
        usual = {
            "data_dir": pairs_folder,
            "output_dir": tmp_path / "run",
            "model_name_or_path": str(checkpoint_folder),
            "passages_path": str(source_folder),
            "n_docs": 3,
            "train_batch_size": 4,
            "learning_rate": 1e-2,
            "num_beams": 1,
            "val_max_target_length": 8,
            "test_max_target_length": 8,
        }
        return FinetuneSettings(**{**usual, **changes})

    return made


def metrics(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "metrics.json").read_text(encoding="utf-8"))


def timeless(folder: Path) -> list[dict[str, float]]:
    """The validation records without what the clock says."""
    clock = ("questions_per_second", "val_seconds")
    return [{name: value for name, value in r.items() if name not in clock} for r in metrics(folder)["val"]]


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "model.safetensors")


def same(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


class Stopped(BaseException):
    """As KeyboardInterrupt comes, from anywhere."""


def run_until(plan: RunPlan, step: int) -> None:
    """Run until an optimiser step is about to end, and stop there."""

    def stop() -> None:
        nonlocal step
        step -= 1
        if step == 0:
            raise Stopped

    original = Trainer.__init__

    def wrapped(self: Trainer, *args: Any, **options: Any) -> None:
        original(self, *args, **{**options, "after_step": stop})

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Trainer, "__init__", wrapped)
        with pytest.raises(Stopped):
            run(plan)


def closed_book(models_folder: Path) -> dict[str, Any]:
    return {"model_name_or_path": str(models_folder / "generator"), "passages_path": None, "n_docs": None}


@pytest.mark.parametrize(
    ("kind", "stop_at"), [("rag", 2), ("rag", 3), ("rag", 8), ("closed-book", 3), ("adafactor", 8), ("fp16", 3)]
)
def test_a_stopped_run_goes_on_exactly(
    kind: str, stop_at: int, settings: Settings, tmp_path: Path, models_folder: Path
) -> None:
    """With dropout on; stopped right at a validation, right after one, and in a later epoch."""
    options: dict[str, Any] = {
        "rag": {"dropout": 0.2, "weight_decay": 0.01, "lr_scheduler": "cosine", "warmup_steps": 2},
        "closed-book": {"dropout": 0.2, "encoder_layerdrop": 0.3, **closed_book(models_folder)},
        "adafactor": {"dropout": 0.2, "adafactor": True, "gradient_accumulation_steps": 2, "train_batch_size": 2},
        "fp16": {"dropout": 0.2, "fp16": True},
    }[kind]
    options |= {"num_train_epochs": 4, "val_check_interval": 0.4}
    whole = run(run_plan(settings(**options, output_dir=tmp_path / "whole")))
    plan = run_plan(settings(**options))
    run_until(plan, stop_at)
    scaler = torch.load(tmp_path / "run" / "last" / "training_state.pt")["scaler"]
    assert (scaler is not None) == (kind == "fp16")
    # The first steps overflowed, so a scaler that began anew would do so once more.
    assert scaler is None or scaler["scale"] < 65536
    torch.manual_seed(12345)
    resumed = run(run_plan(settings(**options, resume=True)))
    assert (resumed.steps, resumed.best) == (whole.steps, whole.best)
    assert timeless(tmp_path / "run") == timeless(tmp_path / "whole")
    for name in ("last", "best"):
        assert same(weights(tmp_path / "run" / name), weights(tmp_path / "whole" / name))
    names = [sorted(path.name for path in (tmp_path / name).iterdir()) for name in ("run", "whole")]
    assert names[0] == names[1]
    steps = [record["step_count"] for record in metrics(tmp_path / "run")["val"]]
    assert len(steps) == len(set(steps)) >= 8


def test_dropout_is_really_on(settings: Settings, tmp_path: Path) -> None:
    """Else the test above would show nothing of random numbers."""
    for seed in (1, 1, 2):
        run(run_plan(settings(dropout=0.2, train_batch_size=10, seed=seed, output_dir=tmp_path / f"{seed}")))
        if seed == 1:
            again = tmp_path / "again"
            (tmp_path / "1").rename(again) if not again.exists() else None
    assert same(weights(tmp_path / "1" / "last"), weights(tmp_path / "again" / "last"))
    assert not same(weights(tmp_path / "1" / "last"), weights(tmp_path / "2" / "last"))


def test_a_run_stopped_before_its_first_checkpoint_leaves_nothing(settings: Settings, tmp_path: Path) -> None:
    run_until(run_plan(settings()), 2)
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "run").mkdir()
    run_until(run_plan(settings()), 2)
    assert list(tmp_path.iterdir()) == [tmp_path / "run"]
    assert run(run_plan(settings())).steps == 9


def test_a_finished_run_goes_on_for_longer(settings: Settings, tmp_path: Path) -> None:
    run(run_plan(settings(num_train_epochs=1)))
    first = weights(tmp_path / "run" / "last")
    resumed = run(run_plan(settings(num_train_epochs=2, resume=True)))
    assert resumed.steps == 6
    assert [record["step_count"] for record in metrics(tmp_path / "run")["val"]] == [3, 6]
    assert not same(first, weights(tmp_path / "run" / "last"))
    again = run(run_plan(settings(num_train_epochs=2, resume=True)))
    assert (again.steps, again.best) == (6, resumed.best)


def test_a_run_that_goes_on_for_longer_follows_its_new_schedule_at_once(settings: Settings) -> None:
    """Where the old one had come to a learning rate of zero."""
    run(run_plan(settings(num_train_epochs=1)))
    rates: list[float] = []
    hook = register_optimizer_step_pre_hook(lambda optimizer, *_: rates.append(optimizer.param_groups[0]["lr"]))
    try:
        run(run_plan(settings(num_train_epochs=2, resume=True)))
    finally:
        hook.remove()
    assert rates == pytest.approx([1e-2 * left / 6 for left in (3, 2, 1)])


@pytest.fixture
def predicted(settings: Settings, tmp_path: Path) -> Finetuned:
    """A run that trained and predicted, with a validation after every step."""
    return finetune(
        settings(
            do_train=True, do_predict=True, num_train_epochs=15, train_batch_size=5, val_check_interval=1, num_beams=2
        )
    )


def test_what_a_run_leaves(predicted: Finetuned, tmp_path: Path, pairs_folder: Path) -> None:
    folder = tmp_path / "run"
    records = metrics(folder)["val"]
    assert [record["step_count"] for record in records] == list(range(2, 31, 2))
    scores = {record["step_count"]: record["val_avg_em"] for record in records}
    assert max(scores.values()) > 0, "something is learnt, so that the checkpoints differ"
    ranked = sorted(scores, key=lambda step: (-scores[step], step))
    kept = {*ranked[:3], 30}
    assert {path.name for path in folder.glob("checkpoint*")} == {f"checkpoint{step}" for step in kept}
    assert (folder / "best").resolve().name == f"checkpoint{ranked[0]}"
    assert (folder / "last").resolve().name == "checkpoint30"
    assert predicted.best is not None
    assert (predicted.best.step, predicted.best.score) == (ranked[0], scores[ranked[0]])
    assert {path.name for path in folder.iterdir()} == {
        *{f"checkpoint{step}" for step in kept},
        *{"best", "last", "metrics.json", "settings.yaml", "tensorboard", "test_predictions.txt"},
    }
    assert set(records[0]) == {
        *{"step_count", "val_avg_em", "val_avg_f1", "loss_per_token", "questions_per_second", "learning_rate"},
        *{"distinct_passages", "prior_entropy", "posterior_entropy", "val_seconds"},
    }
    assert records[-1]["loss_per_token"] < records[0]["loss_per_token"] / 2


def test_the_validation_scores_are_those_of_the_checkpoint(
    predicted: Finetuned, tmp_path: Path, pairs_folder: Path
) -> None:
    """The best checkpoint, opened anew and asked, answers as often right as metrics.json says."""
    model: Any = open_model(ModelRequest(str(tmp_path / "run" / "best")))
    examples = read_examples(pairs_folder, "val")
    answers = [a[0].text for a in model.generate([e.question for e in examples], Decoding(2, max_length=8))]
    right = [answer.split() == e.answer.removeprefix("the ").split() or answer == e.answer
             for answer, e in zip(answers, examples, strict=True)]  # fmt: skip
    assert predicted.best is not None
    assert 100 * sum(right) / len(right) == predicted.best.score


def test_test_predictions_are_the_best_checkpoints(predicted: Finetuned, tmp_path: Path, pairs_folder: Path) -> None:
    model: Any = open_model(ModelRequest(str(tmp_path / "run" / "best")))
    questions = [example.question for example in read_examples(pairs_folder, "test")]
    expected = [answers[0].text for answers in model.generate(questions, Decoding(2, max_length=8))]
    lines = (tmp_path / "run" / "test_predictions.txt").read_text(encoding="utf-8").splitlines()
    assert lines == expected
    assert metrics(tmp_path / "run")["test"] == {
        "test_avg_em": round(predicted.test["em"], 4),
        "test_avg_f1": round(predicted.test["f1"], 4),
    }


def test_tensorboard_events(predicted: Finetuned, tmp_path: Path) -> None:
    files = list((tmp_path / "run" / "tensorboard").rglob("events.out.tfevents.*"))
    folder = min((file.parent for file in files), key=lambda path: len(path.parts))
    events = EventAccumulator(str(folder))
    events.Reload()
    train = {
        *{"loss_per_token", "questions_per_second", "learning_rate"},
        *{"distinct_passages", "prior_entropy", "posterior_entropy"},
    }
    assert set(events.Tags()["scalars"]) >= {"val/em", "val/f1", *(f"train/{name}" for name in train)}
    assert [event.step for event in events.Scalars("train/loss_per_token")] == list(range(1, 31))
    scores = {event.step: event.value for event in events.Scalars("val/em")}
    records = metrics(tmp_path / "run")["val"]
    assert scores == pytest.approx({record["step_count"]: record["val_avg_em"] for record in records})


def test_the_trained_model_is_gone_when_the_best_one_is_opened(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two at a time would take the memory of two."""
    trained: list[weakref.ref[Any]] = []
    there: list[bool] = []

    def watched(request: ModelRequest) -> Any:
        there.append(any(model() is not None for model in trained))
        model = open_model(request)
        trained.append(weakref.ref(model))
        return model

    monkeypatch.setattr("ragstone.training.run.open_model", watched)
    finetune(settings(do_train=True, do_predict=True, max_steps=1))
    assert there == [False, False]


def test_predicting_alone(settings: Settings, tmp_path: Path, checkpoint_folder: Path, source_folder: Path) -> None:
    """Without a run in the folder, the given model is asked; with one, its best checkpoint."""
    result = finetune(settings(do_predict=True))
    assert (result.steps, result.best) == (0, None)
    assert {path.name for path in (tmp_path / "run").iterdir()} == {
        "test_predictions.txt", "metrics.json", "test_settings.yaml"
    }  # fmt: skip
    untrained = (tmp_path / "run" / "test_predictions.txt").read_text(encoding="utf-8")
    trained = settings(output_dir=tmp_path / "trained", num_train_epochs=15)
    finetune(trained)
    before = (tmp_path / "trained" / "settings.yaml").read_bytes()
    validations = metrics(tmp_path / "trained")["val"]
    finetune(dataclasses.replace(trained, do_predict=True))
    predictions = (tmp_path / "trained" / "test_predictions.txt").read_text(encoding="utf-8")
    assert predictions != untrained
    assert metrics(tmp_path / "trained")["val"] == validations
    assert (tmp_path / "trained" / "settings.yaml").read_bytes() == before
    again = settings(
        model_name_or_path=str(tmp_path / "trained" / "best"), output_dir=tmp_path / "again", do_predict=True
    )
    finetune(again)
    assert (tmp_path / "again" / "test_predictions.txt").read_text(encoding="utf-8") == predictions


def test_training_and_the_question_encoder(settings: Settings, tmp_path: Path, checkpoint_folder: Path) -> None:
    start = weights(checkpoint_folder)
    encoder = [name for name in start if name.startswith("rag.question_encoder.")]
    for freeze in (True, False):
        folder = tmp_path / str(freeze)
        run(run_plan(settings(output_dir=folder, num_train_epochs=1, freeze_question_encoder=freeze)))
        end = weights(folder / "last")
        assert all(torch.equal(start[name], end[name]) for name in encoder) == freeze
        assert not same(
            {n: t for n, t in start.items() if n not in encoder}, {n: end[n] for n in end if n not in encoder}
        )


def resume_message(settings: Settings, **changes: Any) -> str:
    with pytest.raises(InputError) as raised:
        run(run_plan(settings(**{"resume": True, **changes})))
    return str(raised.value)


def test_only_the_same_run_is_resumed(
    settings: Settings, tmp_path: Path, pairs_folder: Path, source_folder: Path
) -> None:
    run(run_plan(settings(num_train_epochs=1)))
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "run").rglob("*")}
    message = resume_message(settings, learning_rate=1e-3, seed=1)
    assert "was started differently: --learning_rate (0.01 then, 0.001 now), --seed (42 then, 1 now)" in message
    assert "--n_docs (3 then, 2 now)" in resume_message(settings, n_docs=2)
    assert "--adafactor (False then, True now)" in resume_message(settings, adafactor=True)
    assert "--freeze_question_encoder" in resume_message(settings, freeze_question_encoder=True)
    assert "differently: the training examples;" in resume_message(settings, n_train=9)
    assert "differently: the validation examples;" in resume_message(settings, n_val=2)
    data = tmp_path / "data"
    data.mkdir()
    for path in pairs_folder.iterdir():
        (data / path.name).write_bytes(path.read_bytes())
    run(
        run_plan(settings(num_train_epochs=1, resume=True, data_dir=data, eval_batch_size=3, early_stopping_patience=5))
    )
    (data / "train.target").write_text("red\n" * 10, encoding="utf-8")
    assert "the training examples" in resume_message(settings, data_dir=data)
    untouched = {path: time for path, time in before.items() if path.parent.name.startswith("checkpoint")}
    assert {path: path.stat().st_mtime_ns for path in untouched} == untouched


def test_another_knowledge_source_is_another_run(settings: Settings, tmp_path: Path, models_folder: Path) -> None:
    from ragstone.commands.build_knowledge import BuildKnowledgeSettings, build_knowledge

    run(run_plan(settings(num_train_epochs=1)))
    (tmp_path / "other.tsv").write_text("king\tmara was the king\nstone\ta red stone\n", encoding="utf-8")
    build_knowledge(
        BuildKnowledgeSettings(
            csv_path=[str(tmp_path / "other.tsv")],
            output_dir=tmp_path / "other",
            dpr_ctx_encoder_model_name=str(models_folder / "passage_encoder"),
            index="flat",
            precision="fp32",
        )
    )
    assert "differently: the knowledge source;" in resume_message(settings, passages_path=str(tmp_path / "other"))


def test_profile(settings: Settings, tmp_path: Path) -> None:
    run(run_plan(settings(profile=True, train_batch_size=1, num_train_epochs=1)))
    table = (tmp_path / "run" / "profile.txt").read_text(encoding="utf-8")
    assert "aten::addmm" in table
    assert "Self CPU" in table
    trace = json.loads((tmp_path / "run" / "profile.json").read_text(encoding="utf-8"))
    assert any(event.get("name") == "aten::addmm" for event in trace["traceEvents"])


def test_a_passage_count_above_the_corpus(settings: Settings, tmp_path: Path) -> None:
    result = run(run_plan(settings(n_docs=50, num_train_epochs=1)))
    assert result.steps == 3
    assert metrics(tmp_path / "run")["val"][0]["distinct_passages"] == 1.0
    config = json.loads((tmp_path / "run" / "last" / "config.json").read_text(encoding="utf-8"))
    assert config["n_docs"] == 50
