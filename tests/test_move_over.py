"""docs/move-over.md: every command line is taken by the real parser, every table says what the settings say."""

from __future__ import annotations

import dataclasses
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from ragstone.__main__ import main
from ragstone.commands.table import load_command
from ragstone.errors import InputError
from ragstone.settings import parse_settings

PAGE = (Path(__file__).parents[1] / "docs" / "move-over.md").read_text(encoding="utf-8")
SCRIPTS = {
    "use_own_knowledge_dataset.py": "build-knowledge",
    "consolidate_rag_checkpoint.py": "consolidate",
    "finetune_rag.py": "finetune",
    "eval_rag.py": "eval",
    "parse_dpr_relevance_data.py": "parse-dpr",
}

# The flags of the reference's argument parsers that a command here has too, with their defaults. Text that is empty
# there means what None means here; REQUIRED is a flag that must be given.
REQUIRED = dataclasses.MISSING
REFERENCE_DEFAULTS: dict[str, dict[str, Any]] = {
    "build-knowledge": {
        "csv_path": "a sample file",
        "output_dir": "a folder that is deleted",
        "dpr_ctx_encoder_model_name": "facebook/dpr-ctx_encoder-multiset-base",
        "rag_model_name": "facebook/rag-sequence-nq",
        "question": None,
        "num_proc": None,
        "batch_size": 16,
        "d": 768,
        "m": 128,
    },
    "consolidate": {
        "model_type": REQUIRED,
        "dest": REQUIRED,
        "generator_name_or_path": REQUIRED,
        "question_encoder_name_or_path": REQUIRED,
        "generator_tokenizer_name_or_path": None,
        "question_encoder_tokenizer_name_or_path": None,
        "config_name_or_path": None,
    },
    "finetune": {
        "data_dir": REQUIRED,
        "output_dir": REQUIRED,
        "model_name_or_path": REQUIRED,
        "model_type": None,
        "config_name": None,
        "tokenizer_name": None,
        "cache_dir": None,
        "encoder_layerdrop": None,
        "decoder_layerdrop": None,
        "dropout": None,
        "attention_dropout": None,
        "learning_rate": 5e-5,
        "lr_scheduler": "linear",
        "weight_decay": 0.0,
        "adam_epsilon": 1e-8,
        "warmup_steps": 0,
        "num_workers": 4,
        "num_train_epochs": 3,
        "train_batch_size": 32,
        "eval_batch_size": 32,
        "adafactor": False,
        "fp16": False,
        "max_grad_norm": 1.0,
        "do_train": False,
        "do_predict": False,
        "gradient_accumulation_steps": 1,
        "seed": 42,
        "max_source_length": 128,
        "max_target_length": 25,
        "val_max_target_length": 25,
        "test_max_target_length": 25,
        "logger_name": "default",
        "n_train": -1,
        "n_val": -1,
        "n_test": -1,
        "label_smoothing": 0.0,
        "prefix": None,
        "early_stopping_patience": -1,
        "index_name": None,
        "use_dummy_dataset": False,
        "passages_path": None,
        "index_path": None,
        "gpus": None,
        "profile": False,
        "distributed_retriever": "pytorch",
        "distributed_port": -1,
        "ray_address": "auto",
        "num_retrieval_workers": 1,
        "val_check_interval": 1.0,
        "fast_dev_run": False,
    },
    "eval": {
        "model_name_or_path": REQUIRED,
        "model_type": None,
        "index_name": None,
        "index_path": None,
        "n_docs": 5,
        "eval_mode": "e2e",
        "k": 1,
        "evaluation_set": REQUIRED,
        "gold_data_path": REQUIRED,
        "gold_data_mode": "qa",
        "predictions_path": "predictions.txt",
        "eval_all_checkpoints": False,
        "eval_batch_size": 8,
        "recalculate": False,
        "num_beams": 4,
        "min_length": 1,
        "max_length": 50,
        "print_predictions": False,
        "print_docs": False,
    },
    "parse-dpr": {"src_path": "biencoder-nq-dev.json", "evaluation_set": "none", "gold_data_path": "none"},
}


def rows(heading: str) -> list[list[str]]:
    """The cells of the table under `heading`, without its head."""
    section = PAGE[PAGE.index(f"## {heading}\n") :].split("\n## ")[0]
    lines = [line for line in section.splitlines() if line.startswith("|")]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines[2:]]


def command_lines() -> Iterator[tuple[list[str], list[str]]]:
    """Their words from the script's name on, and ours from the command's name on."""
    for theirs, ours in rows("Command by command"):
        yield shlex.split(theirs.strip("`"))[1:], shlex.split(ours.strip("`"))[1:]


LINES = list(command_lines())


def settings_class(command: str) -> type[Any]:
    return load_command(command).settings_class


def values_by_flag(words: list[str]) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    for word in words[1:]:
        if word.startswith("--"):
            found[word] = []
        else:
            found[list(found)[-1]].append(word)
    return found


def flags_without_a_successor(script: str) -> set[str]:
    return {flag.strip("`") for name, flag, _ in rows("Flags that are not here") if name == script}


def test_every_script_is_there_with_its_command() -> None:
    assert {theirs[0]: ours[0] for theirs, ours in LINES} == SCRIPTS


@pytest.mark.parametrize(
    ("theirs", "ours"), LINES, ids=[f"{ours[0]}{number}" for number, (_, ours) in enumerate(LINES)]
)
def test_our_line_is_parsed_and_keeps_every_flag_of_theirs(theirs: list[str], ours: list[str]) -> None:
    settings = parse_settings(settings_class(ours[0]), ours[1:], "ragstone", "")
    gone = flags_without_a_successor(theirs[0])
    old, new = values_by_flag(theirs), values_by_flag(ours)
    assert new == {flag: values for flag, values in old.items() if flag not in gone}
    for flag, values in new.items():
        value = getattr(settings, flag.removeprefix("--"))
        held = [value] if not isinstance(value, list) else value
        expected = values or ["True"]
        number = isinstance(value, (int, float)) and not isinstance(value, bool)
        assert (list(map(float, held)) if number else list(map(str, held))) == (
            list(map(float, expected)) if number else expected
        )


@pytest.mark.parametrize(
    ("theirs", "ours"), LINES, ids=[f"{ours[0]}{number}" for number, (_, ours) in enumerate(LINES)]
)
def test_our_line_gets_as_far_as_the_files(
    theirs: list[str],
    ours: list[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """In an empty folder it stops at the first thing that it misses, which is no flag."""
    monkeypatch.chdir(tmp_path)
    assert main(ours) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    values = [value for values in values_by_flag(ours).values() for value in values]
    assert any(value in error for value in [*values, "torch can use", "needs a GPU"])
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("command", REFERENCE_DEFAULTS)
def test_the_table_of_defaults_is_whole(command: str) -> None:
    listed = {
        flag.strip("`-"): (old, new) for name, flag, old, new, _ in rows("Defaults that differ") if name == command
    }
    fields = {field.name: field for field in dataclasses.fields(settings_class(command))}
    differing = {}
    for name, old in REFERENCE_DEFAULTS[command].items():
        new = fields[name].default
        new = str(new) if isinstance(new, Path) else new
        if old != new:
            differing[name] = (
                "must be given" if old is REQUIRED else str(old),
                "must be given" if new is REQUIRED else "not given" if new is None else str(new),
            )
    assert listed == differing


@pytest.mark.parametrize(("script", "flag", "_"), rows("Flags that are not here"))
def test_flags_that_are_not_here_are_refused(script: str, flag: str, _: str) -> None:
    command = SCRIPTS[script]
    with pytest.raises(InputError, match=f"There is no flag {flag.strip('`')}"):
        parse_settings(settings_class(command), [flag.strip("`"), "1"], "ragstone", "")
