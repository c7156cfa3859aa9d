"""ragstone ask on the command line: what it prints, and what it refuses."""

from __future__ import annotations

import codecs
import io
import json
import os
import shlex
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from ragstone.__main__ import main
from ragstone.commands.ask import AskSettings, ask
from ragstone.model.answers import Answer
from ragstone.model.decoding import Decoding
from ragstone.model.open import ModelRequest, open_model
from ragstone.settings import parse_settings
from tests.commands.conftest import layers_called, refused
from tests.conftest import DOCUMENTS, build_source, join_models

QUESTION = "who founded the town ?"


@pytest.fixture
def flags(checkpoint_folder: Path, source_folder: Path) -> list[str]:
    return [
        "ask",
        f"--model_name_or_path={checkpoint_folder}",
        f"--passages_path={source_folder}",
        "--n_docs=3",
        "--max_length=8",
    ]


@pytest.fixture
def expected(checkpoint_folder: Path, source_folder: Path) -> Answer:
    model = open_model(ModelRequest(str(checkpoint_folder), passages_path=str(source_folder), n_docs=3))
    return model.generate([QUESTION], Decoding(max_length=8))[0][0]


def _standard_input(monkeypatch: pytest.MonkeyPatch, content: bytes) -> None:
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(content), encoding="ascii"))


def _refused(capsys: pytest.CaptureFixture[str], flags: list[str], *parts: str) -> None:
    """The command line is refused with one sentence that has all `parts`."""
    message = refused(capsys, flags)
    for part in parts:
        assert part in message


def test_nothing_is_imported_that_is_not_needed(flags: list[str]) -> None:
    """Everybody who asks would wait for datasets and pandas, and hold them in memory."""
    code = "import sys; from ragstone.__main__ import main; main(sys.argv[1:]); print(*sys.modules, file=sys.stderr)"
    command = [sys.executable, "-c", code, *flags, f"--question={QUESTION}"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    imported = set(done.stderr.split())
    assert "transformers" in imported and not imported & {"datasets", "pandas"}


@pytest.mark.parametrize("name", ["bfloat16", "float16"])
def test_type_of_the_generators_weights(
    flags: list[str], expected: Answer, checkpoint_folder: Path, source_folder: Path, name: str
) -> None:
    request = ModelRequest(str(checkpoint_folder), passages_path=str(source_folder), n_docs=3, torch_dtype=name)
    half = open_model(request).generate([QUESTION], Decoding(max_length=8))[0][0]
    settings = parse_settings(AskSettings, [*flags[1:], f"--question={QUESTION}", f"--torch_dtype={name}"], "ask", "")
    ((_, answer, _),) = ask(settings)
    assert (answer.text, answer.score) == (half.text, half.score)
    assert answer.score != expected.score, "of rounded weights"


@pytest.mark.parametrize("bits", ["8bit", "4bit"])
def test_layers_in_few_bits(flags: list[str], bits: str) -> None:
    with layers_called() as called:
        assert main([*flags, "--question", QUESTION, "--quantization", bits]) == 0
    assert {"Linear8bitLt", "Linear4bit"} & called.classes == {f"Linear{bits}{'Lt' if bits == '8bit' else ''}"}


def test_question_on_the_command_line(capsys: pytest.CaptureFixture[str], flags: list[str], expected: Answer) -> None:
    assert main([*flags, "--question", QUESTION]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == f"Q: {QUESTION}"
    assert lines[1] == f"A: {expected.text}   (log p(answer) {expected.score:.3f})"
    assert lines[2].split() == ["prior", "posterior", "passage"]
    for line, passage in zip(lines[3:6], expected.passages, strict=True):
        prior, posterior, row, rest = line.split(maxsplit=3)
        assert (float(prior), float(posterior)) == (
            pytest.approx(passage.prior, abs=6e-4),
            pytest.approx(passage.posterior, abs=6e-4),
        )
        assert row == f"[{passage.passage.id}]"
        assert rest == " / ".join(DOCUMENTS[passage.passage.id])


def test_json(capsys: pytest.CaptureFixture[str], flags: list[str], expected: Answer) -> None:
    assert main([*flags, "--question", QUESTION, "--json"]) == 0
    record = json.loads(capsys.readouterr().out)
    assert list(record) == ["question", "answer", "score", "passages"]
    assert (record["question"], record["answer"]) == (QUESTION, expected.text)
    assert record["score"] == pytest.approx(expected.score)
    for found, passage in zip(record["passages"], expected.passages, strict=True):
        assert list(found) == ["id", "title", "text", "score", "prior", "posterior"]
        assert (found["title"], found["text"]) == DOCUMENTS[found["id"]]
        assert found["score"] == pytest.approx(passage.score)
        assert found["prior"] == pytest.approx(passage.prior)
        assert found["posterior"] == pytest.approx(passage.posterior)


def test_questions_on_standard_input(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, flags: list[str], expected: Answer
) -> None:
    """One per line, in order, blank lines left out, any Unicode whatever the locale."""
    questions = [QUESTION, "wer gründete Ötztal ?", "谁 建立 了 这座 城 ? 🏰"]
    _standard_input(monkeypatch, "\n\n".join(questions).encode() + b"\r\n  \n")
    assert main([*flags, "--json"]) == 0
    out = capsys.readouterr().out
    records = [json.loads(line) for line in out.splitlines()]
    assert [record["question"] for record in records] == questions
    assert records[0]["answer"] == expected.text
    assert "🏰" in out


def test_a_byte_order_mark_is_no_part_of_the_first_question(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, flags: list[str], expected: Answer
) -> None:
    _standard_input(monkeypatch, codecs.BOM_UTF8 + f"{QUESTION}\n".encode())
    assert main([*flags, "--json"]) == 0
    record = json.loads(capsys.readouterr().out)
    assert (record["question"], record["score"]) == (QUESTION, pytest.approx(expected.score))


def test_more_passages_than_there_are(capsys: pytest.CaptureFixture[str], flags: list[str]) -> None:
    assert main([*flags, "--n-docs", "50", "--question", QUESTION, "--json"]) == 0
    passages = json.loads(capsys.readouterr().out)["passages"]
    assert sorted(passage["id"] for passage in passages) == list(range(len(DOCUMENTS)))
    for share in ("prior", "posterior"):
        assert sum(passage[share] for passage in passages) == pytest.approx(1)


def test_other_type_than_the_checkpoints(flags: list[str], checkpoint_folder: Path, source_folder: Path) -> None:
    """As a function: the settings in, question, answer and format out."""
    settings = AskSettings(
        str(checkpoint_folder), QUESTION, model_type="rag_token", passages_path=str(source_folder), max_length=8
    )
    ((question, answer, as_json),) = ask(settings)
    model = open_model(ModelRequest(str(checkpoint_folder), model_type="rag_token", passages_path=str(source_folder)))
    assert (question, as_json) == (QUESTION, False)
    assert answer == model.generate([QUESTION], Decoding(max_length=8))[0][0]


def test_long_passages_are_shortened_between_words(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], models_folder: Path, checkpoint_folder: Path
) -> None:
    text = " ".join(["the old river"] * 30)
    (tmp_path / "documents.tsv").write_text(f"hill\t{text}\n", encoding="utf-8")
    build_source(tmp_path / "documents.tsv", tmp_path / "source", models_folder / "passage_encoder")
    capsys.readouterr()
    flags = ["ask", f"--model_name_or_path={checkpoint_folder}", f"--passages_path={tmp_path / 'source'}"]
    assert main([*flags, "--question", QUESTION]) == 0
    line = capsys.readouterr().out.splitlines()[3]
    shown = line.split("] ", 1)[1]
    assert shown.endswith(" ...") and len(shown) <= 160
    assert f"hill / {text}".startswith(shown.removesuffix(" ..."))
    assert main([*flags, "--question", QUESTION, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["passages"][0]["text"] == text


def test_a_real_process(flags: list[str], tmp_path: Path, expected: Answer) -> None:
    """Nothing but answers on standard output, nothing at all on standard error, whatever the locale and folder."""
    command = [sys.executable, "-m", "ragstone", *flags]
    environment = {**os.environ, "LC_ALL": "C", "PYTHONPATH": str(Path(__file__).parents[2])}
    done = subprocess.run(
        command, input=f"{QUESTION}\nÖtztal ?\n".encode(), capture_output=True, env=environment, cwd=tmp_path
    )
    assert done.returncode == 0
    assert done.stderr == b""
    out = done.stdout.decode("utf-8")
    assert f"A: {expected.text} " in out
    assert "Q: Ötztal ?" in out


@pytest.mark.parametrize(
    ("changes", "parts"),
    [
        (["--question", "  "], ["--question is empty"]),
        (["--question", "who \udcff ?"], ["is not UTF-8"]),
        (["--question", QUESTION, "--n_docs=0"], ["--n_docs is 0, but must be at least 1"]),
        (["--question", QUESTION, "--num_beams=0"], ["num_beams is 0, but must be at least 1"]),
        (["--question", QUESTION, "--min_length=9"], ["min_length 9 is above max_length 8"]),
        (
            ["--question", QUESTION, "--index_name=exact"],
            ["--index_name exact names a published index; with --passages_path leave it out or give custom."],
        ),
        (["--question", QUESTION, "--passages_path=nowhere"], ["no knowledge source nowhere", "build-knowledge"]),
        (["--question", QUESTION, "--index_path=nowhere.faiss"], ["no index file nowhere.faiss", "--index_path"]),
        (
            ["--question", QUESTION, "--model_name_or_path=facebook/rag-token-nq"],
            ["'facebook/rag-token-nq' is neither a folder nor a model that can be reached on the hub"],
        ),
    ],
)
def test_flags_that_cannot_be_used(
    capsys: pytest.CaptureFixture[str], flags: list[str], changes: list[str], parts: list[str]
) -> None:
    _refused(capsys, [*flags, *changes], *parts)


def test_the_reference_calls_a_sources_own_index_custom(
    capsys: pytest.CaptureFixture[str], flags: list[str], expected: Answer
) -> None:
    assert main([*flags, "--index_name=custom", "--question", QUESTION, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["score"] == pytest.approx(expected.score)


def test_no_source_is_named(capsys: pytest.CaptureFixture[str], checkpoint_folder: Path) -> None:
    flags = ["ask", f"--model_name_or_path={checkpoint_folder}", "--question", QUESTION]
    _refused(capsys, flags, "--passages_path")


@pytest.mark.parametrize(
    ("content", "part"),
    [
        (b"", "No question came on standard input"),
        (b" \n\n", "No question came on standard input"),
        (b"\n\xff who ?\n", "Standard input, line 2: byte 0 of the line is not UTF-8 (0xff)"),
    ],
)
def test_standard_input_that_cannot_be_used(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, flags: list[str], content: bytes, part: str
) -> None:
    _standard_input(monkeypatch, content)
    _refused(capsys, flags, part)


def test_a_source_of_another_encoder(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], models_folder: Path, source_folder: Path
) -> None:
    """Its vectors have the right length: only the fingerprint tells."""
    encoder = models_folder / "question_encoder"
    join_models(models_folder / "generator", encoder, tmp_path / "rag", passage_encoder_name_or_path=str(encoder))
    flags = ["ask", f"--model_name_or_path={tmp_path / 'rag'}", f"--passages_path={source_folder}"]
    _refused(capsys, [*flags, "--question", QUESTION], str(source_folder), "was built with the passage encoder")


@pytest.mark.parametrize(
    ("spoil", "parts"),
    [
        (lambda folder: (folder / "my_knowledge_dataset" / "state.json").unlink(), ["is not a knowledge source"]),
        (lambda folder: (folder / "my_knowledge_dataset" / "state.json").write_text("{"), ["state.json is damaged"]),
        (
            lambda folder: next((folder / "my_knowledge_dataset").glob("*.arrow")).write_bytes(b"no arrow"),
            ["cannot be read", "build the knowledge source again"],
        ),
        (
            lambda folder: (folder / "my_knowledge_dataset_hnsw_index.faiss").write_bytes(b"no index"),
            ["is not a FAISS index", "build-knowledge"],
        ),
    ],
    ids=["no state", "damaged state", "no arrow", "no index"],
)
def test_a_source_that_cannot_be_read(
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    checkpoint_folder: Path,
    source_folder: Path,
    spoil: Any,
    parts: list[str],
) -> None:
    shutil.copytree(source_folder, tmp_path / "source")
    spoil(tmp_path / "source")
    flags = ["ask", f"--model_name_or_path={checkpoint_folder}", f"--passages_path={tmp_path / 'source'}"]
    _refused(capsys, [*flags, "--question", QUESTION], str(tmp_path / "source"), *parts)


def test_the_documentations_commands(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    checkpoint_folder: Path,
    source_folder: Path,
) -> None:
    """Every command of docs/answer-questions.md, in a folder that holds what the page says."""
    open_model(ModelRequest(str(checkpoint_folder), passages_path=str(source_folder))).save(tmp_path / "run" / "best")
    (tmp_path / "knowledge-2").symlink_to(source_folder)
    (tmp_path / "questions.txt").write_text(f"{QUESTION}\n\nwhat is the river ?\n", encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    page = (Path(__file__).parents[2] / "docs" / "answer-questions.md").read_text(encoding="utf-8")
    commands = [line.strip() for line in page.splitlines() if line.startswith("    ragstone ")]
    assert len(commands) == 4
    for command in commands:
        command, _, output = command.partition(" > ")
        command, _, questions = command.partition(" < ")
        if questions:
            _standard_input(monkeypatch, Path(questions).read_bytes())
        assert main(shlex.split(command)[1:]) == 0, command
        out = capsys.readouterr().out
        assert out.startswith("{" if "--json" in command else "Q: ")
        if output:
            Path(output).write_text(out, encoding="utf-8")
    records = [json.loads(line) for line in Path("answers.jsonl").read_text(encoding="utf-8").splitlines()]
    assert len(records) == 2
    keys = page[page.index("| key |") : page.index("## How it searches")]
    assert all(key in keys for key in (*records[0], *records[0]["passages"][0]))
