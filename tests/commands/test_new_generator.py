"""ragstone new-generator on the command line, and what the next commands make of it."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml
from transformers import AutoModelForSeq2SeqLM, AutoTokenizer, RagSequenceForGeneration

from ragstone.__main__ import main

TINY = ["--d_model=16", "--heads=2", "--encoder_layers=1", "--decoder_layers=1", "--vocab_size=300"]


def command(documents: Path, dest: Path, *flags: str) -> list[str]:
    return ["new-generator", "--csv_path", str(documents), "--dest", str(dest), *TINY, *flags]


def test_it_becomes_part_of_a_checkpoint(
    documents_file: Path, models_folder: Path, source_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(command(documents_file, tmp_path / "generator", "--dropout=0.2")) == 0
    shown = capsys.readouterr().out
    model = AutoModelForSeq2SeqLM.from_pretrained(tmp_path / "generator")
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "generator")
    assert f"generator   {tmp_path / 'generator'}: {model.num_parameters() / 1e6:,.1f} M parameters" in shown
    assert f"{len(tokenizer):,} tokens" in shown
    assert (model.config.d_model, model.config.dropout, model.config.vocab_size) == (16, 0.2, len(tokenizer))
    saved = yaml.safe_load((tmp_path / "generator" / "settings.yaml").read_text(encoding="utf-8"))
    assert (saved["d_model"], saved["dropout"]) == (16, 0.2)
    flags = ["--generator_name_or_path", str(tmp_path / "generator")]
    flags += ["--question_encoder_name_or_path", str(models_folder / "question_encoder")]
    assert main(["consolidate", "--model_type", "rag_sequence", "--dest", str(tmp_path / "rag"), *flags]) == 0
    _, report = RagSequenceForGeneration.from_pretrained(tmp_path / "rag", output_loading_info=True)
    assert not report["missing_keys"]
    asked = ["--passages_path", str(source_folder), "--question", "who founded the town ?", "--max_length", "5"]
    assert main(["ask", "--model_name_or_path", str(tmp_path / "rag"), *asked]) == 0


def test_equal_seeds_give_equal_files(documents_file: Path, pairs_folder: Path, tmp_path: Path) -> None:
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        words = command(documents_file, tmp_path / name, f"--seed={seed}", "--data_dir", str(pairs_folder))
        assert main(words) == 0
    a, b, c = ((tmp_path / name / "model.safetensors").read_bytes() for name in "abc")
    assert a == b
    assert a != c
    tokenizers = [(tmp_path / name / "tokenizer.json").read_bytes() for name in "ab"]
    assert tokenizers[0] == tokenizers[1]


def test_words_of_questions_and_answers_are_learned_too(tmp_path: Path) -> None:
    (tmp_path / "documents.tsv").write_text("stone\ta stone\n", encoding="utf-8")
    for split_file, text in (("train.source", "what ?\n" * 9), ("train.target", "quixotic\n" * 9)):
        (tmp_path / split_file).write_text(text, encoding="utf-8")
    lengths = []
    for name, more in (("without", []), ("with", ["--data_dir", str(tmp_path)])):
        assert main(command(tmp_path / "documents.tsv", tmp_path / name, *more)) == 0
        tokenizer = AutoTokenizer.from_pretrained(tmp_path / name)
        lengths.append(len(tokenizer("quixotic", add_special_tokens=False)["input_ids"]))
    assert lengths[0] > lengths[1] == 1


def test_from_an_encoder(minilm_folder: str, tmp_path: Path) -> None:
    flags = ["--encoder_name_or_path", minilm_folder, "--encoder_layers=1", "--decoder_layers=1"]
    assert main(["new-generator", "--dest", str(tmp_path / "generator"), *flags]) == 0
    model = AutoModelForSeq2SeqLM.from_pretrained(tmp_path / "generator")
    assert (model.config.d_model, model.config.encoder_layers, model.config.decoder_layers) == (384, 1, 1)


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--csv_path=nowhere.tsv"], "nowhere.tsv"),
        (["--d_model=0"], "--d_model is 0, but must be at least 1"),
        (["--d_model=10", "--heads=4"], "--d_model 10 cannot be divided among --heads 4"),
        (["--dropout=1"], "--dropout is 1.0, but must be at least 0 and below 1"),
        (["--data_dir=nowhere"], "nowhere/train.source cannot be read"),
        (["--encoder_name_or_path=x"], "--encoder_name_or_path brings its own tokenizer; leave --csv_path out"),
    ],
)
def test_bad_flags(
    flags: list[str], message: str, documents_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(command(documents_file, tmp_path / "generator", *flags)) == 2
    captured = capsys.readouterr()
    assert message in captured.err
    assert captured.err.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


def test_nothing_to_learn_from(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["new-generator", "--dest", str(tmp_path / "generator")]) == 2
    assert "Give --csv_path, the documents to learn a tokenizer from" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_a_used_folder_is_refused(documents_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "mine.txt").write_text("mine", encoding="utf-8")
    assert main(command(documents_file, tmp_path)) == 2
    assert "is not empty; give a new or an empty folder to --dest" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["mine.txt"]
