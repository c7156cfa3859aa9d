"""ragstone finetune on the command line: what its flags do, what the next commands take, and what it refuses."""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from safetensors.torch import load_file

from ragstone.__main__ import main
from ragstone.commands.finetune_plan import run_plan
from ragstone.commands.finetune_settings import FinetuneSettings
from ragstone.index.vector_index import build_index
from ragstone.knowledge.source import KnowledgeSource
from tests.commands.conftest import refused
from tests.conftest import keep_as_downloaded

PAGE = Path(__file__).parents[2] / "docs" / "fine-tune.md"


@pytest.fixture(scope="module")
def lasting_base(pairs_folder: Path, checkpoint_folder: Path, source_folder: Path) -> dict[str, Any]:
    """Flags of a short run of the tiny checkpoint, without a folder for it."""
    return {
        "data_dir": pairs_folder,
        "model_name_or_path": checkpoint_folder,
        "passages_path": source_folder,
        "train_batch_size": 5,
        "num_train_epochs": 1,
        "learning_rate": 0.01,
        "num_beams": 2,
        "val_max_target_length": 8,
        "test_max_target_length": 8,
    }


@pytest.fixture
def base(lasting_base: dict[str, Any], tmp_path: Path) -> dict[str, Any]:
    """The same, in a folder of the test."""
    return {**lasting_base, "output_dir": tmp_path / "run"}


@pytest.fixture
def closed_book(base: dict[str, Any], models_folder: Path) -> dict[str, Any]:
    """The same of the tiny BART alone."""
    return {**base, "model_name_or_path": models_folder / "generator", "passages_path": None}


def words(flags: dict[str, Any]) -> list[str]:
    """Flags as a command line; None leaves one out, True is a flag without a value."""
    given = {name: value for name, value in flags.items() if value is not None}
    pairs = [[f"--{name}"] if value is True else [f"--{name}", str(value)] for name, value in given.items()]
    return ["finetune", *(word for pair in pairs for word in pair)]


def run(flags: dict[str, Any], **more: Any) -> int:
    return main(words({**flags, **more}))


def records(folder: Path) -> list[dict[str, Any]]:
    return json.loads((folder / "metrics.json").read_text(encoding="utf-8"))["val"]


def config(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "config.json").read_text(encoding="utf-8"))


def refusal(flags: dict[str, Any], capsys: pytest.CaptureFixture[str], **more: Any) -> str:
    """The one sentence of a refused command, which wrote nothing."""
    folder = Path(flags["output_dir"])
    there = folder.exists() and sorted((path, path.lstat().st_mtime_ns) for path in folder.rglob("*"))
    message = refused(capsys, words({**flags, **more}))
    assert (folder.exists() and sorted((path, path.lstat().st_mtime_ns) for path in folder.rglob("*"))) == there
    return message


def test_trains_when_nothing_is_asked_for(
    base: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    # One process has nothing to do with others.
    for name in ("init_process_group", "new_group", "TCPStore"):
        monkeypatch.setattr(f"torch.distributed.{name}", None)
    monkeypatch.setattr("torch.distributed.launcher.api.elastic_launch", None)
    monkeypatch.setattr("torch.nn.parallel.DistributedDataParallel.__init__", None)
    assert run(base) == 0
    captured = capsys.readouterr()
    assert f"output       {tmp_path / 'run'}\nsteps        2 in " in captured.out
    assert "best         checkpoint2: exact match " in captured.out
    for shown in ("step 2/2", "loss/token ", " questions/s", " lr ", " distinct ", "entropy prior ", " posterior "):
        assert shown in captured.err
    plan, _ = captured.err.splitlines()  # and one line per validation, no bars without a terminal
    number = r"\d+\.\d [MG]iB"
    memory = rf"memory {number} for weights, gradients and optimiser, activations besides; index {number}"
    assert re.fullmatch(
        rf"processes 1, on the [CG]PU \| retrieval in the process itself; index memory-mapped \| {memory}", plan
    )
    assert not (tmp_path / "run" / "test_predictions.txt").exists()
    saved = yaml.safe_load((tmp_path / "run" / "settings.yaml").read_text(encoding="utf-8"))
    assert (saved["train_batch_size"], saved["lr_scheduler"], saved["label_smoothing"]) == (5, "linear", 0.0)


def test_the_saved_settings_repeat_the_run(base: dict[str, Any], tmp_path: Path) -> None:
    assert run(base, dropout=0.1, do_train=True, do_predict=True) == 0
    saved = str(tmp_path / "run" / "settings.yaml")
    assert main(["finetune", "--config", saved, "--output-dir", str(tmp_path / "again")]) == 0
    first, again = (load_file(tmp_path / name / "last" / "model.safetensors") for name in ("run", "again"))
    assert all(torch.equal(first[name], again[name]) for name in first)
    predictions = [(tmp_path / name / "test_predictions.txt").read_bytes() for name in ("run", "again")]
    assert predictions[0] == predictions[1]
    assert predictions[0].count(b"\n") == 3


def answers_of_eval(flags: dict[str, Any], folder: Path) -> bytes:
    """What `ragstone eval` predicts for the test questions with the best checkpoint of the run in `folder`/run."""
    data, predictions = flags["data_dir"], folder / "predictions.txt"
    words = ["--model_name_or_path", str(folder / "run" / "best"), "--predictions_path", str(predictions)]
    words += ["--evaluation_set", f"{data}/test.source", "--gold_data_path", f"{data}/test.target"]
    words += ["--gold_data_mode", "ans", "--num_beams", "2", "--max_length", "8", "--precision", "fp32"]
    assert main(["eval", *words]) == 0
    return predictions.read_bytes()


@pytest.mark.parametrize("model_type", ["rag_sequence", "rag_token"])
def test_checkpoints_go_to_transformers_and_the_next_commands(
    base: dict[str, Any], model_type: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    import transformers

    assert run(base, model_type=model_type, n_docs=3, do_train=True, do_predict=True) == 0
    best = str(tmp_path / "run" / "best")
    names = {"rag_sequence": "RagSequenceForGeneration", "rag_token": "RagTokenForGeneration"}
    loaded, report = getattr(transformers, names[model_type]).from_pretrained(best, output_loading_info=True)
    assert not report["missing_keys"]
    assert not report["unexpected_keys"]
    assert loaded.config.n_docs == 3
    assert answers_of_eval(base, tmp_path) == (tmp_path / "run" / "test_predictions.txt").read_bytes()
    record = json.loads((tmp_path / "predictions.txt.json").read_text(encoding="utf-8"))
    assert model_type in str(record)
    capsys.readouterr()
    assert main(["ask", "--model_name_or_path", best, "--question", "who founded the town ?", "--json"]) == 0
    assert len(json.loads(capsys.readouterr().out)["passages"]) == 3


@pytest.mark.parametrize("kind", ["bart", "t5"])
def test_closed_book_baselines(
    kind: str, closed_book: dict[str, Any], t5_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from transformers import AutoModelForSeq2SeqLM

    name = t5_folder if kind == "t5" else closed_book["model_name_or_path"]
    flags = {**closed_book, "model_name_or_path": name, "model_type": kind, "num_train_epochs": 60}
    assert run(flags, val_check_interval=40, do_train=True, do_predict=True) == 0
    assert records(tmp_path / "run")[-1]["val_avg_em"] > 0
    assert not any("distinct" in record for record in records(tmp_path / "run"))
    captured = capsys.readouterr()
    assert "distinct" not in captured.err
    assert "test em" in captured.out
    model = AutoModelForSeq2SeqLM.from_pretrained(tmp_path / "run" / "best")
    assert model.config.model_type == kind
    data = closed_book["data_dir"]
    gold = ["--gold_data_path", f"{data}/val.target", "--gold_data_mode", "ans"]
    flags_of_eval = ["--evaluation_set", f"{data}/val.source", *gold, "--predictions_path", str(tmp_path / "p.txt")]
    assert main(["eval", "--model_name_or_path", str(tmp_path / "run" / "best"), *flags_of_eval]) == 0


def test_a_closed_book_is_evaluated_with_the_length_it_was_trained_with(
    closed_book: dict[str, Any], tmp_path: Path
) -> None:
    """Three tokens leave one word of a question."""
    assert run(closed_book, max_source_length=3, num_train_epochs=20, do_train=True, do_predict=True) == 0
    assert config(tmp_path / "run" / "best")["ragstone"] == {"max_source_length": 3}
    assert answers_of_eval(closed_book, tmp_path) == (tmp_path / "run" / "test_predictions.txt").read_bytes()


def test_generator_settings_reach_the_config(base: dict[str, Any], closed_book: dict[str, Any], tmp_path: Path) -> None:
    changes = {"dropout": 0.2, "attention_dropout": 0.3, "encoder_layerdrop": 0.4, "decoder_layerdrop": 0.05}
    assert run(base, **changes) == 0
    generator = config(tmp_path / "run" / "last")["generator"]
    assert {name: generator[name] for name in changes} == changes
    assert run({**closed_book, "output_dir": tmp_path / "closed"}, **changes) == 0
    own = config(tmp_path / "closed" / "last")
    assert {name: own[name] for name in changes} == changes


def test_t5s_dropout_has_another_name(
    closed_book: dict[str, Any], t5_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    flags = {**closed_book, "model_name_or_path": t5_folder}
    for name in ("attention_dropout", "encoder_layerdrop", "decoder_layerdrop"):
        message = refusal(flags, capsys, **{name: 0.1})
        assert f"A t5 generator has no setting {name}; leave --{name} out." in message
    assert run(flags, dropout=0.25) == 0
    assert config(tmp_path / "run" / "last")["dropout_rate"] == 0.25


def first_loss(flags: dict[str, Any], folder: Path, **more: Any) -> float:
    """The loss per token of the first step."""
    assert run({**flags, "output_dir": folder}, max_steps=1, train_batch_size=10, **more) == 0
    return records(folder)[0]["loss_per_token"]


@pytest.fixture(scope="module")
def plain_loss(lasting_base: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> float:
    """The first loss of the run without further flags."""
    return first_loss(lasting_base, tmp_path_factory.mktemp("plain") / "run")


@pytest.mark.parametrize(
    "changes",
    [
        {"n_docs": 1},
        {"prefix": "what is "},
        {"max_source_length": 3},
        {"max_target_length": 3},
        {"max_combined_length": 9},
        {"dropout": 0.5},
        {"attention_dropout": 0.5},
        {"decoder_layerdrop": 0.9},
        {"model_type": "rag_token"},
        {"n_train": 4},
    ],
    ids=str,
)
def test_flags_change_the_loss(
    base: dict[str, Any], changes: dict[str, Any], plain_loss: float, tmp_path: Path
) -> None:
    assert abs(first_loss(base, tmp_path / "other", **changes) - plain_loss) > 1e-4


def test_gradient_checkpointing_does_not(base: dict[str, Any], plain_loss: float, tmp_path: Path) -> None:
    assert first_loss(base, tmp_path / "same", gradient_checkpointing=True) == plain_loss


def test_gradient_checkpointing_reaches_the_model(base: dict[str, Any]) -> None:
    for asked in (False, True):
        assert run_plan(FinetuneSettings(**base, gradient_checkpointing=asked)).model.gradient_checkpointing is asked


def test_an_index_file_that_is_elsewhere(base: dict[str, Any], tmp_path: Path) -> None:
    """The right one gives the run of the source's own and is recorded; one that finds others gives another run."""
    vectors = KnowledgeSource(Path(base["passages_path"])).store.vectors(np.arange(6))
    build_index(lambda: iter([vectors]), 6, 16, "HNSW16,Flat", tmp_path / "right.faiss")
    build_index(lambda: iter([vectors[::-1]]), 6, 16, "Flat", tmp_path / "others.faiss")
    own = first_loss(base, tmp_path / "own", n_docs=2)
    right = first_loss(base, tmp_path / "right", n_docs=2, index_path=tmp_path / "right.faiss")
    assert right == pytest.approx(own)
    assert config(tmp_path / "right" / "best")["index_path"] == str(tmp_path / "right.faiss")
    others = first_loss(base, tmp_path / "others", n_docs=2, index_path=tmp_path / "others.faiss")
    assert abs(others - own) > 1e-4


THREADS = """
import os, sys
from ragstone.__main__ import main
assert main(sys.argv[1:]) == 0
print(len(os.listdir("/proc/self/task")))
"""


@pytest.mark.slow
def test_num_workers_is_the_threads_that_tokenise(closed_book: dict[str, Any], tmp_path: Path) -> None:
    """Three threads more are alive at the end."""
    threads = []
    for number in (1, 4):
        flags = {**closed_book, "num_workers": number, "n_train": 5, "output_dir": tmp_path / str(number)}
        environment = {name: value for name, value in os.environ.items() if name != "RAYON_NUM_THREADS"}
        command = [sys.executable, "-c", THREADS, *words(flags)]
        out = subprocess.run(command, env=environment, capture_output=True, text=True, check=True).stdout
        threads.append(int(out.splitlines()[-1]))
    assert threads[1] - threads[0] == 3


def test_label_smoothing_changes_what_is_learnt_and_not_what_is_shown(base: dict[str, Any], tmp_path: Path) -> None:
    """The loss shown is always that of the answer, so that runs can be compared."""
    plain = first_loss(base, tmp_path / "plain")
    assert first_loss(base, tmp_path / "smoothed", label_smoothing=0.3) == plain
    one, other = (load_file(tmp_path / name / "last" / "model.safetensors") for name in ("plain", "smoothed"))
    assert first_loss(base, tmp_path / "twice", max_grad_norm=0) == plain
    assert not all(torch.allclose(one[name], other[name], atol=1e-4) for name in one)


@pytest.mark.parametrize(
    "changes",
    [
        {"lr_scheduler": "cosine"},
        {"warmup_steps": 2},
        {"weight_decay": 0.9},
        {"adam_epsilon": 0.1},
        {"adafactor": True},
        {"max_grad_norm": 0.01, "adam_epsilon": 0.1},
        {"gradient_accumulation_steps": 2},
        {"seed": 7},
    ],
    ids=str,
)
def test_flags_change_the_weights(closed_book: dict[str, Any], changes: dict[str, Any], tmp_path: Path) -> None:
    """Those of the optimiser and of the order, whose effect the first loss does not show."""
    plain = {"adam_epsilon": changes["adam_epsilon"]} if "max_grad_norm" in changes else {}
    for name, more in (("plain", plain), ("other", changes)):
        assert run({**closed_book, "output_dir": tmp_path / name, "dropout": 0, "train_batch_size": 2}, **more) == 0
    one, other = (load_file(tmp_path / name / "last" / "model.safetensors") for name in ("plain", "other"))
    assert max((one[name] - other[name]).abs().max().item() for name in one) > 1e-4


def test_n_val_n_test_eval_batch_size_and_num_beams(
    closed_book: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from ragstone.model.closed_book import ClosedBook

    seen, inner = [], ClosedBook.generate

    def watched(self: Any, questions: Any, decoding: Any, *rest: Any) -> Any:
        seen.append((len(questions), decoding.num_beams, decoding.max_length))
        return inner(self, questions, decoding, *rest)

    monkeypatch.setattr(ClosedBook, "generate", watched)
    flags = {**closed_book, "do_train": True, "do_predict": True, "n_val": 3, "n_test": 2, "eval_batch_size": 1}
    flags |= {"num_beams": 3, "test_max_target_length": 7, "max_steps": 1}
    assert run(flags) == 0
    assert len((tmp_path / "run" / "test_predictions.txt").read_text().splitlines()) == 2
    assert seen == [(1, 3, 8)] * 3 + [(1, 3, 7)] * 2


def test_a_rag_checkpoint_has_tokenizers_of_its_own(
    base: dict[str, Any], models_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    message = refusal(base, capsys, tokenizer_name=models_folder / "generator")
    assert f"--tokenizer_name is {models_folder / 'generator'}" in message
    assert "leave it out" in message


def test_lengths_and_prefix_reach_the_checkpoint(base: dict[str, Any], tmp_path: Path) -> None:
    flags = {"max_combined_length": 20, "max_source_length": 9, "prefix": "old ", "n_docs": 2}
    assert run(base, **flags) == 0
    saved = config(tmp_path / "run" / "last")
    assert (saved["max_combined_length"], saved["n_docs"], saved["generator"]["prefix"]) == (20, 2, "old ")
    assert saved["ragstone"]["question_encoder"]["max_length"] == 9
    again = {**base, "model_name_or_path": tmp_path / "run" / "last", "output_dir": tmp_path / "again"}
    assert run(again, prefix="") == 0
    assert not config(tmp_path / "again" / "last")["generator"]["prefix"]


def move(names: list[str], folder: Path, new: Path) -> Path:
    """Move files out of a folder into a new one."""
    new.mkdir()
    for name in names:
        shutil.move(folder / name, new / name)
    return new


def test_a_config_that_is_elsewhere(base: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """It says how many passages to retrieve; the checkpoints that are saved need no other folder."""
    plain = first_loss(base, tmp_path / "plain", n_docs=2)
    model = tmp_path / "model"
    shutil.copytree(base["model_name_or_path"], model)
    elsewhere = move(["config.json"], model, tmp_path / "elsewhere")
    changed = json.dumps({**config(elsewhere), "n_docs": 2})
    (elsewhere / "config.json").write_text(changed, encoding="utf-8")
    flags = {**base, "model_name_or_path": model}
    assert f"The config.json in {model} cannot be read" in refusal(flags, capsys)
    assert first_loss(flags, tmp_path / "run", config_name=elsewhere, do_train=True, do_predict=True) == plain
    assert config(tmp_path / "run" / "best")["n_docs"] == 2
    shutil.rmtree(elsewhere)
    assert run({**base, "model_name_or_path": tmp_path / "run" / "best", "output_dir": tmp_path / "next"}) == 0


def test_a_closed_books_config_and_tokenizer_that_are_elsewhere(
    closed_book: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    plain = first_loss(closed_book, tmp_path / "plain", prefix="old ")
    model = tmp_path / "model"
    shutil.copytree(closed_book["model_name_or_path"], model)
    tokenizer = move(["tokenizer.json", "tokenizer_config.json"], model, tmp_path / "tokenizer")
    flags = {**closed_book, "model_name_or_path": model}
    assert f"The tokenizer in {model} cannot be read (it has no vocabulary)" in refusal(flags, capsys)
    elsewhere = move(["config.json"], model, tmp_path / "elsewhere")
    changed = json.dumps({**config(elsewhere), "prefix": "old "})
    (elsewhere / "config.json").write_text(changed, encoding="utf-8")
    more = {"config_name": elsewhere, "tokenizer_name": tokenizer, "do_train": True, "do_predict": True}
    assert first_loss(flags, tmp_path / "run", **more) == plain
    for folder in (elsewhere, tokenizer):
        shutil.rmtree(folder)
    again = {**closed_book, "model_name_or_path": tmp_path / "run" / "best", "output_dir": tmp_path / "next"}
    assert run(again, do_predict=True) == 0


def test_models_that_were_downloaded_into_cache_dir(
    base: dict[str, Any], closed_book: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from huggingface_hub import scan_cache_dir

    folders = {"some/rag": base["model_name_or_path"], "some/bart": closed_book["model_name_or_path"]}
    for name, folder in folders.items():
        keep_as_downloaded(folder, name, tmp_path / "hub")
    there = scan_cache_dir(tmp_path / "hub")
    assert ({repository.repo_id for repository in there.repos}, there.warnings) == (set(folders), [])
    for flags, name in ((base, "some/rag"), (closed_book, "some/bart")):
        plain = first_loss(flags, tmp_path / f"{name}-plain")
        downloaded = {**flags, "model_name_or_path": name}
        assert f"{name!r} is neither a folder nor a model that can be reached" in refusal(downloaded, capsys)
        assert first_loss(downloaded, tmp_path / name, cache_dir=tmp_path / "hub") == plain


@pytest.mark.parametrize("short", ["val", "test"])
def test_answers_are_no_longer_than_asked_for(
    closed_book: dict[str, Any], short: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A model that has learnt its answers has no room for them: two tokens are the start token and BART's <s>."""
    flags = {**closed_book, "num_train_epochs": 60, "val_check_interval": 40, "do_train": True, "do_predict": True}
    assert run(flags, **{f"{short}_max_target_length": 2}) == 0
    metrics = json.loads((tmp_path / "run" / "metrics.json").read_text(encoding="utf-8"))
    scores = {"val": metrics["val"][-1]["val_avg_em"], "test": metrics["test"]["test_avg_em"]}
    assert {split: score > 0 for split, score in scores.items()} == {"val": short == "test", "test": short == "val"}


def test_fast_dev_run_leaves_nothing(
    base: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "tmp").mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "tmp"))
    assert run(base, fast_dev_run=True, num_train_epochs=7) == 0
    captured = capsys.readouterr()
    assert "output       none" in captured.out
    assert "steps        1 in" in captured.out
    assert "test em" in captured.out
    assert [path.name for path in tmp_path.iterdir()] == ["tmp"]
    assert list((tmp_path / "tmp").iterdir()) == []


def test_early_stopping(base: dict[str, Any], tmp_path: Path) -> None:
    """Steps too small to change an answer: no validation is better than the first."""
    assert run(base, num_train_epochs=9, learning_rate=1e-9, early_stopping_patience=2) == 0
    assert [record["step_count"] for record in records(tmp_path / "run")] == [2, 4, 6]


def test_bf16_on_the_cpu(base: dict[str, Any], tmp_path: Path) -> None:
    plain = first_loss(base, tmp_path / "plain", gpus=0)
    half = first_loss(base, tmp_path / "half", bf16=True, gpus=0)
    assert half == pytest.approx(plain, rel=0.03)
    assert half != plain


@pytest.mark.parametrize("signal_number", [signal.SIGTERM, pytest.param(signal.SIGINT, marks=pytest.mark.slow)])
def test_a_killed_process_goes_on_exactly(base: dict[str, Any], signal_number: int, tmp_path: Path) -> None:
    flags = {**base, "dropout": 0.2, "num_train_epochs": 9, "train_batch_size": 3, "val_check_interval": 5}
    assert run(flags, output_dir=tmp_path / "whole") == 0
    process = [sys.executable, "-m", "ragstone", *words(flags)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    # What a shell starts in the background ignores SIGINT, and so do its children, this test's too.
    listens = {"preexec_fn": lambda: signal.signal(signal.SIGINT, signal.SIG_DFL)}
    with subprocess.Popen(process, stderr=subprocess.PIPE, text=True, env=environment, **listens) as running:
        assert running.stderr is not None
        for line in running.stderr:
            if line.startswith("step 15/"):
                running.send_signal(signal_number)
        assert running.wait(60) == 130
    killed_at = records(tmp_path / "run")[-1]["step_count"]
    assert not [path.name for path in (tmp_path / "run").iterdir() if path.name.startswith(".")]
    assert run(flags, resume=True) == 0
    clock = ("questions_per_second", "val_seconds")
    one, other = (
        [{name: value for name, value in record.items() if name not in clock} for record in records(tmp_path / name)]
        for name in ("run", "whole")
    )
    assert one == other
    # The line comes before the checkpoint, so the signal may have met it half-written.
    assert 10 <= killed_at < 36
    last, expected = (load_file(tmp_path / name / "last" / "model.safetensors") for name in ("run", "whole"))
    assert all(torch.equal(last[name], expected[name]) for name in expected)


BAD_FLAGS: list[tuple[dict[str, Any], str]] = [
    ({"num_train_epochs": 0}, "--num_train_epochs is 0, but must be at least 1"),
    ({"train_batch_size": 0}, "--train_batch_size is 0, but must be at least 1"),
    ({"gradient_accumulation_steps": 0}, "--gradient_accumulation_steps is 0, but must be at least 1"),
    ({"val_max_target_length": 1}, "--val_max_target_length is 1, but must be at least 2: it counts the start token"),
    ({"test_max_target_length": 1}, "--test_max_target_length is 1, but must be at least 2: it counts the start token"),
    ({"n_docs": 0}, "--n_docs is 0, but must be at least 1"),
    ({"n_train": 0}, "--n_train is 0, which leaves nothing to do"),
    ({"max_steps": 0}, "--max_steps is 0, which leaves nothing to do"),
    ({"dropout": 1.0}, "--dropout is 1.0, but must be at least 0 and below 1"),
    ({"label_smoothing": "nan"}, "--label_smoothing is nan, but must be at least 0 and below 1"),
    ({"learning_rate": 0}, "--learning_rate is 0.0, but must be a number above 0"),
    ({"learning_rate": "nan"}, "--learning_rate is nan, but must be a number above 0"),
    (
        {"question_encoder_learning_rate": "inf"},
        "--question_encoder_learning_rate is inf, but must be",
    ),
    ({"learning_rate": 1e-8, "lr_scheduler": "polynomial"}, "so --learning_rate must be above that; it is 1e-08"),
    ({"lr_scheduler": "constant"}, "--lr_scheduler"),
    ({"warmup_steps": -1}, "--warmup_steps is -1, but must be a number of at least 0"),
    ({"weight_decay": -0.1}, "--weight_decay is -0.1, but must be a number of at least 0"),
    ({"seed": -1}, "--seed is -1, but must be a number of at least 0"),
    ({"seed": 2**32}, "--seed is 4294967296, but must be below 4294967296"),
    ({"val_check_interval": 0}, "--val_check_interval is 0.0, but must be a number above 0"),
    ({"fp16": True, "bf16": True}, "--fp16 and --bf16 exclude each other"),
    ({"fp16": True, "torch_dtype": "float16"}, "--fp16 scales gradients, but those of float16 weights cannot"),
    ({"gpus": 99}, "--gpus 99: this machine has"),
    ({"gpus": -1}, "--gpus is -1, but must be at least 0"),
    ({"resume": True, "fast_dev_run": True}, "leave --resume out"),
    ({"resume": True}, "holds no checkpoint to resume from"),
    ({"model_type": "bart"}, "--passages_path is for RAG models"),
    ({"model_type": "t5", "passages_path": None, "freeze_question_encoder": True}, "--freeze_question_encoder is for"),
    ({"model_type": "t5", "passages_path": None}, "is a RAG checkpoint and cannot be opened as t5"),
    ({"model_name_or_path": "some/nowhere"}, "'some/nowhere' is neither a folder nor a model that can be reached"),
    ({"index_name": "exact"}, "--index_name exact names a published index; with --passages_path leave it out or give"),
    ({"passages_path": "nowhere"}, "There is no knowledge source nowhere"),
    ({"index_path": "nowhere.faiss"}, "nowhere.faiss"),
    ({"passages_path": None}, "give --passages_path the folder of a knowledge source"),
    ({"data_dir": "nowhere"}, "nowhere/train.source cannot be read: No such file"),
]


@pytest.mark.parametrize(("flags", "message"), BAD_FLAGS, ids=lambda value: str(value)[:60])
def test_bad_flags(
    base: dict[str, Any], flags: dict[str, Any], message: str, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    assert message in refusal(base, capsys, **flags)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.skipif(torch.cuda.device_count() > 0, reason="this machine has what is asked for")
def test_gpus_without_gpus(base: dict[str, Any], capsys: pytest.CaptureFixture[str]) -> None:
    assert "--gpus 1: this machine has 0 GPUs that torch can use" in refusal(base, capsys, gpus=1)


BAD_FILES: list[tuple[str, bytes | None, str]] = [
    ("train.target", None, "train.target cannot be read: No such file"),
    ("val.source", None, "val.source cannot be read: No such file"),
    ("test.source", None, "test.source cannot be read: No such file"),
    ("train.target", b"one\ntwo\n", "train.source has 10 lines, but "),
    ("val.source", b"one\n\nthree\nfour\n", "val.source, line 2: an empty line; it should hold a question"),
    ("train.target", b"", "train.target is empty; it should hold an answer on each line"),
    ("test.target", b"one\ntw\xe4\nthree\n", "test.target, line 2: byte 6 is not UTF-8 (0xe4)"),
]


@pytest.mark.parametrize(("name", "content", "message"), BAD_FILES)
def test_bad_data(
    base: dict[str, Any],
    name: str,
    content: bytes | None,
    message: str,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
) -> None:
    data = tmp_path / "data"
    shutil.copytree(base["data_dir"], data)
    (data / name).unlink()
    if content is not None:
        (data / name).write_bytes(content)
    assert message in refusal({**base, "data_dir": data}, capsys, do_train=True, do_predict=True)
    assert not (tmp_path / "run").exists()


def test_a_used_folder_is_refused(base: dict[str, Any], capsys: pytest.CaptureFixture[str]) -> None:
    assert run(base) == 0
    message = refusal(base, capsys)
    assert (
        "is not empty; give a new or an empty folder to --output_dir (or --resume to go on with the run in it)"
        in message
    )
    assert "is not empty" in refusal(base, capsys, fast_dev_run=True)
    assert "--learning_rate (0.01 then, 0.5 now)" in refusal(base, capsys, resume=True, learning_rate=0.5)


def test_a_source_of_another_encoder_is_refused(
    base: dict[str, Any], documents_file: Path, minilm_folder: str, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    flags = ["--csv_path", str(documents_file), "--output_dir", str(tmp_path / "other"), "--index", "flat"]
    assert main(["build-knowledge", *flags, "--dpr_ctx_encoder_model_name", minilm_folder]) == 0
    message = refusal({**base, "passages_path": tmp_path / "other"}, capsys)
    assert "makes question vectors of 16 dimensions" in message
    assert "has 384; build the source with the passage encoder of the model" in message


def test_a_loss_without_end(base: dict[str, Any], capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    message = refusal(base, capsys, learning_rate=1e30, num_train_epochs=5, max_grad_norm=0, val_check_interval=100)
    assert "The loss is not finite at step" in message
    assert list(tmp_path.iterdir()) == []


def test_weights_and_biases_that_are_not_installed(
    base: dict[str, Any], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    # Where it is installed, this makes Python find no such module.
    monkeypatch.setitem(sys.modules, "wandb", None)
    for more in ({}, {"fast_dev_run": True}):
        message = refusal(base, capsys, logger_name="wandb", **more)
        assert "--logger_name wandb needs Weights & Biases: pip install 'ragstone[wandb]'" in message


@pytest.mark.slow
def test_weights_and_biases_offline(base: dict[str, Any], tmp_path: Path) -> None:
    """In a process of its own, since wandb starts another and handles signals."""
    given = {name: value for name, value in os.environ.items() if not name.startswith("WANDB_")}
    quiet = {"WANDB_MODE": "offline", "WANDB_ERROR_REPORTING": "false", "WANDB_SILENT": "true", "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "ragstone", *words({**base, "logger_name": "wandb"})]
    done = subprocess.run(command, env={**given, **quiet}, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["run"]
    (log,) = (tmp_path / "run" / "wandb").glob("offline-run-*/run-*.wandb")
    project, settings, shown = offline_run(log)
    assert project == "ragstone"
    assert (settings["train_batch_size"], settings["learning_rate"]) == (5, 0.01)
    (validation,) = records(tmp_path / "run")
    assert shown["val/em"] == [pytest.approx(validation["val_avg_em"])]
    assert len(shown["train/loss_per_token"]) == len(shown["_step"]) == 2
    # TensorBoard's events are there as always.
    assert list((tmp_path / "run" / "tensorboard").rglob("events.out.tfevents.*"))


def offline_run(log: Path) -> tuple[str, dict[str, Any], dict[str, list[float]]]:
    """Project, settings and shown values by name of what Weights & Biases wrote without a network."""
    from wandb.proto.wandb_internal_pb2 import Record
    from wandb.sdk.internal.datastore import DataStore

    store = DataStore()
    store.open_for_scan(str(log))
    project, settings, shown = "", {}, {}
    while (data := store.scan_data()) is not None:
        record = Record()
        record.ParseFromString(data)
        project = record.run.project or project
        for item in (*record.run.config.update, *record.config.update):
            settings[item.key or item.nested_key[0]] = json.loads(item.value_json)
        for item in record.history.item:
            shown.setdefault(item.key or item.nested_key[0], []).append(json.loads(item.value_json))
    store.close()
    return project, settings, shown


@pytest.fixture
def documented(
    tmp_path: Path, pairs_folder: Path, models_folder: Path, documents_file: Path, monkeypatch: pytest.MonkeyPatch
) -> Path:
    """A folder that holds what docs/fine-tune.md says."""
    shutil.copytree(pairs_folder, tmp_path / "data")
    shutil.copyfile(documents_file, tmp_path / "documents.tsv")
    for name in ("generator", "question_encoder", "passage_encoder"):
        shutil.copytree(models_folder / name, tmp_path / name)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_the_documentations_commands(documented: Path, capsys: pytest.CaptureFixture[str]) -> None:
    page = PAGE.read_text(encoding="utf-8")
    commands = [shlex.split(line)[1:] for line in page.splitlines() if line.startswith("    ragstone ")]
    assert len(commands) == 11
    for command in commands:
        assert main(command) == 0, command
    capsys.readouterr()
    assert not (documented / "trial").exists()
    assert [record["step_count"] for record in records(documented / "run")] == [1, 2, 3, 4, 5]
    left = {path.name for path in (documented / "run").iterdir() if not path.name.startswith("checkpoint")}
    assert left == {name for name in left if f"`{name}`" in page or f"`{name}/`" in page}


def test_the_documentation_names_flags_that_there_are(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["finetune", "--help"]) == 0
    known = set(re.findall(r"--[a-z_0-9]+", capsys.readouterr().out))
    rows = [line for line in PAGE.read_text(encoding="utf-8").splitlines() if line.startswith("|")]
    named = set(re.findall(r"`(--[a-z_0-9]+)", "\n".join(rows)))
    assert len(named) > 40
    assert named <= known
