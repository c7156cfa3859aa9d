from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Literal

import pytest
import yaml

from ragstone.errors import InputError
from ragstone.settings import parse_settings, plain_settings, save_settings


@dataclasses.dataclass(frozen=True)
class Settings:
    output_dir: Path
    """Where to."""
    csv_path: list[str]
    """Where from."""
    batch_size: int = 8
    """Passages at once."""
    n_docs: int | None = None
    """Passages per question."""
    learning_rate: float = 3e-5
    """Step size."""
    fp16: bool = False
    """Half precision."""
    shuffle: bool = True
    """In a new order."""
    normalize: bool | None = None
    """Unit length."""
    model_type: Literal["rag_sequence", "rag_token"] | None = None
    """Marginalisation."""
    prefix: str = ""
    """Before the input."""

    def __post_init__(self) -> None:
        if self.batch_size < 1:
            raise InputError(f"--batch_size is {self.batch_size}, but must be at least 1.")


REQUIRED = ["--output_dir", "out", "--csv_path", "a.tsv"]


def parse(*words: str) -> Settings:
    return parse_settings(Settings, [*REQUIRED, *words], "ragstone test", "What it does.")


def test_defaults() -> None:
    assert parse() == Settings(output_dir=Path("out"), csv_path=["a.tsv"])


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["--batch_size", "3"], {"batch_size": 3}),
        (["--batch-size", "3"], {"batch_size": 3}),
        (["--batch-size=3"], {"batch_size": 3}),
        (["--batch_size", "3", "--batch-size", "4"], {"batch_size": 4}),
        (["--csv_path", "b.tsv", "c d.tsv"], {"csv_path": ["b.tsv", "c d.tsv"]}),
        (["--learning_rate", "1e-3"], {"learning_rate": 1e-3}),
        (["--learning_rate", "-1e-3"], {"learning_rate": -1e-3}),
        (["--fp16"], {"fp16": True}),
        (["--fp16", "True"], {"fp16": True}),
        (["--fp16=true"], {"fp16": True}),
        (["--fp16", "False"], {"fp16": False}),
        (["--fp16", "--no_fp16"], {"fp16": False}),
        (["--no-shuffle"], {"shuffle": False}),
        (["--normalize"], {"normalize": True}),
        (["--no_normalize"], {"normalize": False}),
        (["--normalize", "None"], {"normalize": None}),
        (["--n_docs", "5"], {"n_docs": 5}),
        (["--model_type", "rag_token"], {"model_type": "rag_token"}),
        (["--prefix", "answer: "], {"prefix": "answer: "}),
        (["--prefix", ""], {"prefix": ""}),
        (["--prefix=--x"], {"prefix": "--x"}),
        (["--prefix", "None"], {"prefix": "None"}),
    ],
)
def test_spellings(words: list[str], expected: dict[str, object]) -> None:
    assert parse(*words) == dataclasses.replace(parse(), **expected)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--batch_sice", "3"], "There is no flag --batch_sice; did you mean --batch_size?"),
        (["--zzz"], "There is no flag --zzz; see --help"),
        (["-b", "3"], "There is no flag -b"),
        (["--no_batch_size"], "There is no flag --no_batch_size; did you mean --batch_size?"),
        (["--no_fp16", "True"], "--no_fp16 takes no value"),
        (["--batch_size", "three"], "--batch_size is 'three', but must be a whole number"),
        (["--batch_size", "3.5"], "--batch_size is '3.5', but must be a whole number"),
        (["--batch_size", "None"], "--batch_size is 'None'"),
        (["--batch_size", "0"], "--batch_size is 0, but must be at least 1"),
        (["--batch_size"], "--batch_size needs a value: a whole number"),
        (["--batch_size", "3", "4"], r"--batch_size takes one value, not 2 \(3 4\)"),
        (["--learning_rate", "fast"], "--learning_rate is 'fast', but must be a number"),
        (["--fp16", "maybe"], "--fp16 is 'maybe', but must be True or False"),
        (["--n_docs", "many"], "--n_docs is 'many', but must be a whole number"),
        (["--model_type", "bart"], "--model_type is 'bart', but must be one of rag_sequence, rag_token"),
        (["--csv_path"], "--csv_path needs a value: a text"),
        (["--config"], "--config needs the path"),
    ],
)
def test_wrong_flags_are_named(words: list[str], message: str) -> None:
    with pytest.raises(InputError, match=message):
        parse(*words)


def test_missing_flags_are_named_together() -> None:
    with pytest.raises(InputError, match="--output_dir and --csv_path must be given"):
        parse_settings(Settings, ["--batch_size", "3"], "ragstone test", "")


def test_a_value_before_any_flag_is_refused() -> None:
    with pytest.raises(InputError, match="'stray' belongs to no flag"):
        parse_settings(Settings, ["stray", *REQUIRED], "ragstone test", "")


def test_help_lists_flags_with_what_they_mean(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        parse_settings(Settings, ["--help"], "ragstone test", "What it does.")
    assert stop.value.code == 0
    text = capsys.readouterr().out
    for name in (field.name for field in dataclasses.fields(Settings)):
        assert f"--{name}" in text
    assert "What it does." in text
    assert "Passages per question." in text
    assert "--config FILE.yaml" in text


def test_help_says_in_plain_words_what_a_flag_takes(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "100")
    with pytest.raises(SystemExit):
        parse_settings(Settings, ["--help"], "ragstone test", "What it does.")
    text = " ".join(capsys.readouterr().out.replace("│", " ").split())
    assert "--output_dir PATH Where to. (required)" in text
    assert "--csv_path TEXT ... Where from. (required)" in text
    assert "--batch_size INT Passages at once. (default: 8)" in text
    assert "--n_docs INT Passages per question. --learning_rate FLOAT Step size. (default: 3e-05)" in text
    assert "--fp16, --no_fp16 Half precision. (default: False)" in text
    assert "--normalize {True,False} Unit length. --model_type {rag_sequence,rag_token} Marginalisation. --p" in text


def write(path: Path, text: str) -> str:
    path.write_text(text, encoding="utf-8")
    return str(path)


def test_flags_override_the_settings_file(tmp_path: Path) -> None:
    config = write(
        tmp_path / "config.yaml",
        "csv_path: [b.tsv, c.tsv]\nbatch-size: 2\nlearning_rate: 1e-4\nfp16: true\nshuffle: false\nnormalize: true\n"
        "n_docs:\nprefix: 'answer: '\n",
    )
    settings = parse_settings(Settings, ["--config", config, "--output_dir=o", "--batch_size", "5"], "p", "")
    assert settings == Settings(
        output_dir=Path("o"),
        csv_path=["b.tsv", "c.tsv"],
        batch_size=5,
        learning_rate=1e-4,
        fp16=True,
        shuffle=False,
        normalize=True,
        prefix="answer: ",
    )
    assert parse_settings(Settings, [*REQUIRED, f"--config={config}", "--no_fp16"], "p", "").fp16 is False
    assert parse_settings(Settings, [*REQUIRED, "--config", config], "p", "").csv_path == ["a.tsv"]


def test_the_last_settings_file_counts(tmp_path: Path) -> None:
    first, last = write(tmp_path / "first.yaml", "batch_size: 2"), write(tmp_path / "last.yaml", "n_docs: 3")
    settings = parse_settings(Settings, ["--config", first, *REQUIRED, f"--config={last}"], "p", "")
    assert settings == dataclasses.replace(parse(), n_docs=3)


def test_an_empty_settings_file_gives_nothing(tmp_path: Path) -> None:
    assert parse("--config", write(tmp_path / "config.yaml", "")) == parse()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("batch_sice: 3", "names 'batch_sice', which this command does not know"),
        ("batch_size: three", "config.yaml: --batch_size is 'three', but must be a whole number"),
        ("batch_size: [1, 2]", "config.yaml: --batch_size takes one value"),
        ("csv_path: []", "config.yaml: --csv_path needs a value"),
        ("- a\n- b", "must hold lines of the form"),
        ("a: [b", "is not YAML"),
    ],
)
def test_wrong_settings_files_are_named(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        parse("--config", write(tmp_path / "config.yaml", text))


def test_unreadable_settings_files_are_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"nowhere\.yaml cannot be read"):
        parse("--config", str(tmp_path / "nowhere.yaml"))
    (tmp_path / "latin.yaml").write_bytes(b"prefix: \xe9")
    with pytest.raises(InputError, match=r"latin\.yaml cannot be read"):
        parse("--config", str(tmp_path / "latin.yaml"))


def test_saved_settings_are_read_back(tmp_path: Path) -> None:
    settings = parse(
        "--normalize", "--no_shuffle", "--fp16", "--prefix", "yes", "--model_type", "rag_token", "--csv_path", "a", "é"
    )
    save_settings(settings, tmp_path / "settings.yaml")
    assert parse_settings(Settings, ["--config", str(tmp_path / "settings.yaml")], "p", "") == settings
    assert yaml.safe_load((tmp_path / "settings.yaml").read_text(encoding="utf-8")) == plain_settings(settings)
