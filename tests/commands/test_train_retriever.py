"""ragstone train-retriever on the command line, and what the next commands make of its encoders."""

from __future__ import annotations

import gzip
import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from transformers import AutoTokenizer

from ragstone.__main__ import main
from tests.conftest import decoder_folder

COLOURS, THINGS = ["red", "blue", "green", "white"], ["hat", "ball", "cart", "stone", "knife"]


def entries() -> list[dict[str, Any]]:
    """The colour of a thing in the first passage, another colour in the second."""
    return [
        {
            "question": f"where is the {colour} {thing}?",
            "answers": ["here"],
            "positive_ctxs": [{"title": thing, "text": f"a {colour} {thing} stands here"}],
            "hard_negative_ctxs": [{"title": thing, "text": f"a {other} {thing} stands here"}],
        }
        for thing in THINGS
        for colour, other in zip(COLOURS, [*COLOURS[1:], COLOURS[0]], strict=True)
    ]


@pytest.fixture(scope="module")
def train_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("dpr") / "train.json"
    path.write_text(json.dumps(entries()), encoding="utf-8")
    return path


def command(train_file: Path, output_dir: Path, *flags: str) -> list[str]:
    """A few steps of a tiny retriever; later flags win."""
    usual = ["--batch_size=8", "--max_steps=3", "--precision=fp32", f"--output_dir={output_dir}"]
    return ["train-retriever", "--train_path", str(train_file), *usual, *flags]


FRESH = ["--hidden_size=16", "--vocab_size=200", "--num_heads=2", "--max_length=32"]


def train(train_file: Path, output_dir: Path, *flags: str) -> None:
    assert main(command(train_file, output_dir, *flags)) == 0


@pytest.fixture(scope="module")
def retrievers(train_file: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two retrievers of the same shape, and a knowledge source that the first one's passage encoder built."""
    folder = tmp_path_factory.mktemp("retrievers")
    for name, seed in (("one", 1), ("two", 2)):
        train(train_file, folder / name, *FRESH, f"--seed={seed}")
    documents = folder / "documents.tsv"
    documents.write_text("".join(f"{thing}\tthe {thing} is old\n" for thing in THINGS), encoding="utf-8")
    flags = ["--csv_path", str(documents), "--output_dir", str(folder / "source"), "--index", "flat"]
    passage_encoder = folder / "one" / "passage_encoder"
    assert main(["build-knowledge", *flags, "--dpr_ctx_encoder_model_name", str(passage_encoder)]) == 0
    return folder


def test_learns_and_reports(train_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Held out is the data itself, so that chance (1 of 20) and success are far apart."""
    flags = ["--dev_path", str(train_file), "--num_train_epochs=80", "--max_steps=None", "--hidden_size=32"]
    train(train_file, tmp_path / "out", *FRESH, *flags, "--learning_rate=3e-3", "--eval_steps=60")
    captured = capsys.readouterr()
    for measure in (r"in-batch accuracy [\d.]+ %", r"mean rank \d\.\d\d of 20", r"precision@1 [\d.]+ %"):
        assert re.search(measure, captured.out)
        assert all(re.search(measure, line.partition("held out: ")[2]) for line in captured.err.splitlines())
    assert f"{tmp_path / 'out' / 'question_encoder'}" in captured.out
    assert "20 to train on, 20 held out" in captured.out
    assert captured.err.count("\n") == 4, "one line per evaluation, and no bars without a terminal"
    metrics = json.loads((tmp_path / "out" / "metrics.json").read_text(encoding="utf-8"))
    assert [record["step"] for record in metrics["records"]] == [60, 120, 180, 240]
    assert metrics["best"] in metrics["records"]
    assert metrics["best"]["evaluation"]["precision_at_1"] >= 90
    assert metrics["best"]["evaluation"]["mean_rank"] < 1.5
    assert metrics["best"]["evaluation"]["in_batch_accuracy"] >= 90
    assert metrics["best"]["evaluation"]["passages"] == 20
    assert (metrics["train_questions"], metrics["held_out_questions"]) == (20, 20)
    names = sorted(path.name for path in (tmp_path / "out").iterdir())
    assert names == ["metrics.json", "passage_encoder", "question_encoder", "settings.yaml"]
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
    # The tokenizer was trained on the passages: their words are whole, others in pieces.
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "out" / "passage_encoder")
    assert tokenizer.tokenize("A white knife stands here") == ["a", "white", "knife", "stands", "here"]
    assert len(tokenizer.tokenize("otherwise")) > 1


def test_hard_negatives_are_trained_against(train_file: Path, tmp_path: Path) -> None:
    weights = []
    for number in (0, 1):
        train(train_file, tmp_path / str(number), *FRESH, f"--num_hard_negatives={number}", "--held_out=0")
        weights.append((tmp_path / str(number) / "passage_encoder" / "model.safetensors").read_bytes())
    assert weights[0] != weights[1]


def test_settings_are_saved_as_they_were_in_force_and_repeat_the_run(train_file: Path, tmp_path: Path) -> None:
    train(train_file, tmp_path / "a", *FRESH, "--normalize", "--max_steps=None", "--num_train_epochs=2")
    saved = yaml.safe_load((tmp_path / "a" / "settings.yaml").read_text(encoding="utf-8"))
    in_force = {"max_steps": 6, "learning_rate": 1e-3, "temperature": 0.05, "num_layers": 1, "hidden_size": 16}
    assert {name: saved[name] for name in in_force} == in_force
    flags = ["--config", str(tmp_path / "a" / "settings.yaml"), "--output_dir", str(tmp_path / "b")]
    assert main(["train-retriever", *flags]) == 0
    weights = [(tmp_path / name / "question_encoder" / "model.safetensors").read_bytes() for name in "ab"]
    assert weights[0] == weights[1]


@pytest.mark.parametrize(("fraction", "held_out"), [("0.25", 5), ("0.001", 1), ("0", 0)])
def test_held_out_part(train_file: Path, tmp_path: Path, fraction: str, held_out: int) -> None:
    train(train_file, tmp_path / "out", *FRESH, f"--held_out={fraction}")
    metrics = json.loads((tmp_path / "out" / "metrics.json").read_text(encoding="utf-8"))
    assert (metrics["train_questions"], metrics["held_out_questions"]) == (20 - held_out, held_out)
    assert (metrics["best"]["evaluation"] is None) == (held_out == 0)


def test_several_files_plain_and_gzipped(train_file: Path, tmp_path: Path) -> None:
    zipped = tmp_path / "more.json.gz"
    zipped.write_bytes(gzip.compress(train_file.read_bytes()))
    train(train_file, tmp_path / "out", *FRESH, "--train_path", str(train_file), str(zipped))
    metrics = json.loads((tmp_path / "out" / "metrics.json").read_text(encoding="utf-8"))
    assert metrics["train_questions"] + metrics["held_out_questions"] == 40


@pytest.mark.parametrize("kind", ["dpr", "fresh", "plain bert", "t5", "qwen3", "shared sentence-transformers"])
def test_starts_from_encoders(
    kind: str,
    train_file: Path,
    models_folder: Path,
    plain_bert_folder: Path,
    t5_folder: Path,
    retrievers: Path,
    minilm_folder: str,
    tmp_path: Path,
) -> None:
    """Of every kind, its own output included; the encoders open again and have learnt something."""
    from ragstone.encoders.load import load_encoder
    from ragstone.encoders.pair import load_pair

    def pair_flags(folder: Path) -> list[str]:
        sides = ("question", "passage")
        return [f"--{side}_encoder_name_or_path={folder / f'{side}_encoder'}" for side in sides]

    flags = {
        "dpr": pair_flags(models_folder),
        "fresh": pair_flags(retrievers / "one"),
        "plain bert": [f"--encoder_name_or_path={plain_bert_folder}"],
        "t5": [f"--encoder_name_or_path={t5_folder}"],
        "qwen3": [f"--encoder_name_or_path={decoder_folder(tmp_path / 'qwen3', 'qwen3')}", "--pooling=last"],
        "shared sentence-transformers": [f"--encoder_name_or_path={minilm_folder}", "--shared", "--max_steps=1"],
    }[kind]
    train(train_file, tmp_path / "out", *flags, "--learning_rate=1e-3", "--micro_batch_size=4", "--max_length=20")
    pair = load_pair(str(tmp_path / "out" / "question_encoder"), str(tmp_path / "out" / "passage_encoder"))
    before = flags[0].partition("=")[2]
    assert pair.question.fingerprint() != load_encoder(before, "question", max_length=20).fingerprint()
    assert pair.question.settings.max_length == 20
    same = pair.question.fingerprint() == pair.passage.fingerprint()
    assert same == ("shared" in kind)


def consolidated(retrievers: Path, models_folder: Path, name: str, folder: Path) -> str:
    encoder, generator = str(retrievers / name / "question_encoder"), str(models_folder / "generator")
    flags = ["--question_encoder_name_or_path", encoder, "--generator_name_or_path", generator]
    assert main(["consolidate", "--model_type", "rag_token", "--dest", str(folder), *flags]) == 0
    return str(folder)


def test_only_the_sources_own_question_encoder_may_search_it(
    retrievers: Path, models_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Nothing but the recorded fingerprint tells the two retrievers apart: their shapes are equal."""
    question = ["--question", "where is the red hat ?", "--passages_path", str(retrievers / "source")]
    right = consolidated(retrievers, models_folder, "one", tmp_path / "right")
    wrong = consolidated(retrievers, models_folder, "two", tmp_path / "wrong")
    capsys.readouterr()
    assert main(["ask", "--model_name_or_path", right, *question]) == 0
    assert "stone" in capsys.readouterr().out
    assert main(["ask", "--model_name_or_path", wrong, *question]) == 2
    error = capsys.readouterr().err
    assert "was built with the passage encoder" in error
    assert error.count("\n") == 1


BAD_INPUT: list[tuple[list[str], str]] = [
    (["--train_path", "nowhere.json"], "nowhere.json cannot be read: No such file"),
    (["--dev_path", "nowhere.json"], "nowhere.json cannot be read: No such file"),
    (["--encoder_name_or_path=some/nowhere"], "'some/nowhere' is neither a folder nor a model that can be reached"),
    (["--batch_size=0"], "--batch_size is 0, but must be at least 1"),
    (["--batch_size=1", "--num_hard_negatives=0"], "leaves a question no negatives; raise either"),
    (["--num_hard_negatives=-1"], "--num_hard_negatives is -1, but must be at least 0"),
    (["--micro_batch_size=0"], "--micro_batch_size is 0, but must be at least 1"),
    (["--learning_rate=0"], "--learning_rate is 0.0, but must be above 0"),
    (["--learning_rate=nan"], "--learning_rate is nan, but must be above 0"),
    (["--learning_rate=1e30", "--hidden_size=8", "--max_steps=20"], "take a lower --learning_rate"),
    (["--temperature=-1"], "--temperature is -1.0, but must be above 0"),
    (["--held_out=1"], "--held_out is 1.0, but must be at least 0 and below 1"),
    (["--hidden_size=10", "--num_heads=4"], "--hidden_size 10 must be a multiple of --num_heads 4"),
    (["--encoder_name_or_path=x", "--hidden_size=8"], "--hidden_size is for a fresh encoder"),
    (["--question_encoder_name_or_path=x"], "need each other"),
    (["--passage_encoder_name_or_path=x"], "need each other"),
    (["--question_encoder_name_or_path=x", "--passage_encoder_name_or_path=y", "--shared"], "Two encoders are given"),
]


def fails(words: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    """The one sentence of a refused command."""
    capsys.readouterr()
    assert main(words) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith("ragstone train-retriever: ")
    assert captured.err.count("\n") == 1
    return captured.err


@pytest.mark.parametrize(("flags", "message"), BAD_INPUT)
def test_bad_flags(
    flags: list[str], message: str, train_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert message in fails(command(train_file, tmp_path / "out", *flags), capsys)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"[]", "leaves 0 different passage(s) to train on"),
        (json.dumps([{**entries()[0], "hard_negative_ctxs": []}] * 3).encode(), "leaves 1 different passage(s)"),
        (json.dumps([entries()[0], {"question": "why?"}]).encode(), "entry 2 ('why?') has no positive context"),
        (json.dumps(entries()).encode()[:-9], "the file ends inside entry 20"),
        (json.dumps(entries()).encode().replace(b"hat", b"h\xe4t", 1), "byte 0xe4 is not UTF-8"),
    ],
)
def test_bad_data(content: bytes, message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "dpr.json"
    path.write_bytes(content)
    assert message in fails(command(path, tmp_path / "out", *FRESH), capsys)
    assert [found.name for found in tmp_path.iterdir()] == ["dpr.json"]


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has what is asked for")
def test_fp16_without_a_gpu(train_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = command(train_file, tmp_path / "out", "--encoder_name_or_path=not/looked-for", "--precision=fp16")
    assert "fp16 needs a GPU" in fails(words, capsys)
    assert list(tmp_path.iterdir()) == []


def test_empty_dev_file(train_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    dev = tmp_path / "dev.json"
    dev.write_text("[]", encoding="utf-8")
    words = command(train_file, tmp_path / "out", *FRESH, "--dev_path", str(dev))
    assert f"{dev} has no entries to evaluate on" in fails(words, capsys)


def test_pooling_of_dpr(
    train_file: Path, models_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = command(train_file, tmp_path / "out", f"--encoder_name_or_path={models_folder / 'question_encoder'}")
    assert "leave --pooling out" in fails([*words, "--pooling=mean"], capsys)
    assert "leave --normalize out" in fails([*words, "--normalize"], capsys)
    assert list(tmp_path.iterdir()) == []


def test_another_run_is_refused(train_file: Path, retrievers: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = (retrievers / "one" / "metrics.json").read_bytes()
    words = command(train_file, retrievers / "one", *FRESH)
    assert "one is not empty; give a new or an empty folder to --output_dir" in fails(words, capsys)
    assert (retrievers / "one" / "metrics.json").read_bytes() == before


def test_a_real_process(train_file: Path, tmp_path: Path) -> None:
    words = [word.replace("_", "-") if word.startswith("--") else word for word in FRESH]
    process = [sys.executable, "-m", "ragstone", *command(train_file, tmp_path / "out", *words, "--num-proc=1")]
    done = subprocess.run(process, capture_output=True, text=True, check=True, env={**os.environ, "TERM": "xterm"})
    assert done.stdout.startswith("retriever   ")
    assert "\x1b" not in done.stdout + done.stderr
    assert (tmp_path / "out" / "passage_encoder" / "model.safetensors").is_file()


def test_the_documentations_commands(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every command of docs/train-a-retriever.md, in a folder that holds what the page says."""
    for name in ("train.json", "dev.json"):
        (tmp_path / name).write_text(json.dumps(entries()), encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    page = (Path(__file__).parents[2] / "docs" / "train-a-retriever.md").read_text(encoding="utf-8")
    commands = [line.split()[1:] for line in page.splitlines() if line.startswith("    ragstone ")]
    assert len(commands) == 5
    for words in commands:
        assert main(words) == 0, words
    assert (tmp_path / "dev.titles").read_text(encoding="utf-8").count("\n") == 20
    sample = page[page.index("    [{") : page.index("Of an entry")]
    assert json.loads(sample)[0].keys() == {*entries()[0], "negative_ctxs"}
