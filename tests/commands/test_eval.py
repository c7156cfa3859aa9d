"""ragstone eval on the command line: numbers, kept predictions, comparisons, and what it refuses."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from ragstone.__main__ import main
from ragstone.commands.eval import EvalSettings, Evaluated, eval
from ragstone.encoders.load import load_encoder
from ragstone.index.vector_index import build_index
from ragstone.knowledge.source import INDEX_NAME, PASSAGES_NAME, KnowledgeSource
from ragstone.knowledge.store import PassageWriter
from ragstone.model.open import ModelRequest, open_model
from ragstone.model.rag import RagModel

QUESTIONS = ["who founded the town ?", "what is blue ?", "who was king of the hill ?", "what is the stone ?"]
ANSWERS = [["otto"], ["the river", "river"], ["mara"], ["bridge"]]
TITLES = [["town"], ["river", "hill"], ["king"], ["stone", "bridge"]]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """An evaluation set with gold answers and gold titles."""
    _write(tmp_path / "test.source", QUESTIONS)
    _write(tmp_path / "gold.tsv", [f"{q}\t{a!r}" for q, a in zip(QUESTIONS, ANSWERS, strict=True)])
    _write(tmp_path / "gold.titles", ["\t".join(titles) for titles in TITLES])
    return tmp_path


@pytest.fixture
def base(folder: Path, checkpoint_folder: Path, source_folder: Path) -> dict[str, Any]:
    """Settings of an e2e evaluation."""
    return {
        "evaluation_set": folder / "test.source",
        "gold_data_path": folder / "gold.tsv",
        "model_name_or_path": str(checkpoint_folder),
        "passages_path": str(source_folder),
        "predictions_path": folder / "predictions.txt",
        "n_docs": 3,
        "num_beams": 2,
        "max_length": 8,
        "precision": "fp32",
    }


@pytest.fixture
def retrieval(base: dict[str, Any], folder: Path) -> dict[str, Any]:
    """Settings of an evaluation of retrieval."""
    gold = {"gold_data_path": folder / "gold.titles", "gold_answers_path": folder / "gold.tsv"}
    return {**base, **gold, "eval_mode": "retrieval", "predictions_path": folder / "titles.txt"}


def run(settings: dict[str, Any], *more: str) -> int:
    """Run settings as a command line."""
    words = [word for name, value in settings.items() if value is not None for word in (f"--{name}", str(value))]
    return main(["eval", *words, *more])


def _write(path: Path, lines: list[str]) -> Path:
    path.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
    return path


def _values(result: Evaluated) -> dict[str, float]:
    return {name: score.value for name, score in result.evaluations[0].scores.items()}


def _exact_order(models_folder: Path, source_folder: Path) -> np.ndarray[Any, Any]:
    """Rows of all passages for each question, best first, by plain matrix product."""
    encoder = load_encoder(str(models_folder / "question_encoder"), "question")
    source = KnowledgeSource(source_folder)
    return np.argsort(-(encoder.embed(QUESTIONS) @ source.store.vectors(range(len(source))).T), axis=1)


def test_e2e_predicts_and_measures(base: dict[str, Any], models_folder: Path, source_folder: Path) -> None:
    result = eval(EvalSettings(**base))
    model = open_model(ModelRequest(base["model_name_or_path"], passages_path=base["passages_path"]))
    assert model.model_type == "rag_sequence"
    lines = base["predictions_path"].read_text(encoding="utf-8").splitlines()
    # Make the first and the last prediction the gold: EM and F1 of two in four.
    folder = base["predictions_path"].parent
    golds = [lines[0], "xyz", "xyz", f"The {lines[3]}!"]
    base |= {"gold_data_path": _write(folder / "gold.ans", golds), "gold_data_mode": "ans"}
    again = eval(EvalSettings(**base))
    assert again.evaluations[0].reused
    assert _values(again)["em"] == 50
    assert _values(again)["f1"] == 50
    assert again.evaluations[0].scores["em"].low == 0
    # Passages by exact search, answers looked for in their words: a computation without Ragstone's metrics.
    store = KnowledgeSource(source_folder).store
    ranks = []
    for row, answers in zip(_exact_order(models_folder, source_folder), ANSWERS, strict=True):
        texts = [f" {passage.text} " for passage in store.passages(row[:3])]
        hits = [rank for rank, text in enumerate(texts, 1) if any(f" {answer} " in text for answer in answers)]
        ranks.append(hits[0] if hits else np.inf)
    values = _values(result)
    assert values["recall_at_1"] == 100 * np.mean([rank <= 1 for rank in ranks])
    assert values["recall_at_3"] == 100 * np.mean([rank <= 3 for rank in ranks])
    assert values["mrr_answer"] == pytest.approx(100 * np.mean([1 / rank for rank in ranks]))
    assert values["recall_at_3"] > 0
    assert list(values) == ["em", "f1", "recall_at_1", "recall_at_3", "mrr_answer"]


def test_retrieval_is_exact_search_measured_as_the_reference_does(
    retrieval: dict[str, Any], models_folder: Path, source_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run({**retrieval, "k": 2}) == 0
    store = KnowledgeSource(source_folder).store
    rows = _exact_order(models_folder, source_folder)[:, :3]
    expected = [[passage.title for passage in store.passages(row)] for row in rows]
    lines = retrieval["predictions_path"].read_text(encoding="utf-8").splitlines()
    assert [line.split("\t") for line in lines] == expected
    # get_precision_at_k: per question, distinct gold titles among the first k, over k.
    precision = np.mean([len(set(line[:2]) & set(gold)) / 2 for line, gold in zip(expected, TITLES, strict=True)])
    record = json.loads((retrieval["predictions_path"].parent / "titles.txt.metrics.json").read_text())
    assert record["scores"]["precision_at_2"]["value"] == pytest.approx(100 * precision)
    assert precision > 0
    assert set(record["scores"]) == {
        "precision_at_2", "mrr_title", "recall_at_1", "recall_at_2", "recall_at_3", "mrr_answer"
    }  # fmt: skip
    shown = capsys.readouterr().out
    assert f"Precision@2  {100 * precision:.1f}  [" in shown
    assert "MRR (title)" in shown


def test_reuse_gives_the_same_numbers_and_says_so(base: dict[str, Any], capsys: pytest.CaptureFixture[str]) -> None:
    assert run(base) == 0
    first = capsys.readouterr().out
    path = base["predictions_path"]
    metrics = path.with_name("predictions.txt.metrics.json")
    numbers, written = metrics.read_text(), path.stat().st_mtime_ns
    # As the settings were saved, and with one flag over them that changes no prediction.
    saved = path.with_name("predictions.txt.settings.yaml")
    assert main(["eval", "--config", str(saved), "--eval_batch_size", "1", "--print_predictions", "--print-docs"]) == 0
    second = capsys.readouterr().out
    assert "(reused)" in second
    assert "(reused)" not in first
    assert metrics.read_text() == numbers
    assert path.stat().st_mtime_ns == written
    line = path.read_text(encoding="utf-8").splitlines()[0]
    assert f"Q: {QUESTIONS[0]} - A: {line}\n   [" in second
    assert ", posterior " in second


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"num_beams": 1}, "--num_beams (2 then, 1 now)"),
        ({"n_docs": 2}, "--n_docs (3 then, 2 now)"),
        ({"max_length": 9, "min_length": 2}, "--max_length (8 then, 9 now), --min_length (1 then, 2 now)"),
        ({"precision": "bf16"}, "--precision (fp32 then, bf16 now)"),
        (
            {"torch_dtype": "bfloat16"},
            "the model's weights or settings ({model} then, {model} now), --torch_dtype (float32 then, bfloat16 now)",
        ),
        ({"quantization": "8bit"}, "the model's weights or settings ({model} then, {model} now)"),
        ({"model_type": "rag_token"}, "the model type (rag_sequence then, rag_token now)"),
    ],
)
def test_predictions_of_other_settings_are_refused(
    base: dict[str, Any], change: dict[str, Any], told: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(base) == 0
    before = base["predictions_path"].read_bytes()
    assert run({**base, **change}) == 2
    message = capsys.readouterr().err
    assert f"do not fit: they differ in {told.format(model=base['model_name_or_path'])};" in message
    assert "--recalculate" in message
    assert base["predictions_path"].read_bytes() == before
    assert run({**base, **change}, "--recalculate") == 0
    assert run({**base, **change}) == 0


def test_the_weights_type_counts_where_no_weight_is_rounded(
    base: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """As in a checkpoint that was published in bfloat16: what is computed from the weights differs nevertheless."""
    rounded = Path(shutil.copytree(base["model_name_or_path"], tmp_path / "rounded"))
    weights = load_file(rounded / "model.safetensors")
    exact = {name: tensor.bfloat16().float() for name, tensor in weights.items()}
    save_file(exact, rounded / "model.safetensors", {"format": "pt"})
    assert run({**base, "model_name_or_path": rounded}) == 0
    capsys.readouterr()
    assert run({**base, "model_name_or_path": rounded, "torch_dtype": "bfloat16"}) == 2
    assert "do not fit: they differ in --torch_dtype (float32 then, bfloat16 now);" in capsys.readouterr().err


def test_predictions_of_other_inputs_are_refused(
    base: dict[str, Any], folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(base) == 0
    capsys.readouterr()
    other_questions = _write(folder / "other.source", [*QUESTIONS[:3], "what is red ?"])
    gold = _write(folder / "other.ans", ["x"] * 4)
    changed = {"evaluation_set": other_questions, "gold_data_path": gold, "gold_data_mode": "ans"}
    assert run({**base, **changed}) == 2
    assert "do not fit: they differ in the evaluation set;" in capsys.readouterr().err

    other_source = tmp_path / "source"
    shutil.copytree(base["passages_path"], other_source)
    manifest = json.loads((other_source / "knowledge.json").read_text())
    (other_source / "knowledge.json").write_text(json.dumps({**manifest, "documents": 7}))
    assert run({**base, "passages_path": other_source}) == 2
    assert "do not fit: they differ in the knowledge source;" in capsys.readouterr().err

    other_model = tmp_path / "model"
    shutil.copytree(base["model_name_or_path"], other_model)
    assert run({**base, "model_name_or_path": other_model}) == 0
    config = json.loads((other_model / "config.json").read_text())
    longer = {**config["ragstone"], "generation": {**config["ragstone"]["generation"], "length_penalty": 3.0}}
    (other_model / "config.json").write_text(json.dumps({**config, "ragstone": longer}))
    assert run({**base, "model_name_or_path": other_model}) == 2
    assert "do not fit: they differ in the model's weights or settings" in capsys.readouterr().err
    (other_model / "config.json").write_text(json.dumps(config))
    assert run({**base, "model_name_or_path": other_model}) == 0
    _change_weights(other_model)
    assert run({**base, "model_name_or_path": other_model}) == 2
    assert "do not fit: they differ in the model's weights or settings" in capsys.readouterr().err

    assert run({**base, "eval_mode": "retrieval", "gold_data_path": folder / "gold.titles"}) == 2
    assert "--eval_mode (e2e then, retrieval now)" in capsys.readouterr().err


def _change_weights(checkpoint: Path) -> None:
    weights = load_file(checkpoint / "model.safetensors")
    name = next(name for name in weights if name.endswith("generator.model.decoder.layers.0.fc1.weight"))
    weights[name] = weights[name] * -2
    save_file(weights, checkpoint / "model.safetensors", {"format": "pt"})


def test_an_index_built_anew_is_another_source(base: dict[str, Any], tmp_path: Path) -> None:
    index = tmp_path / "other.faiss"
    source = KnowledgeSource(Path(base["passages_path"]))
    shutil.copyfile(source.index_path, index)
    other = KnowledgeSource(Path(base["passages_path"]), index)
    assert other.fingerprint() != source.fingerprint()
    assert KnowledgeSource(Path(base["passages_path"]), index).fingerprint() == other.fingerprint()


def test_predictions_without_a_record(base: dict[str, Any], capsys: pytest.CaptureFixture[str]) -> None:
    """Scored where no model is claimed to have made them; line i is question i, an empty line an empty answer."""
    _write(base["predictions_path"], ["Otto!", "a river", "", "the stone"])
    assert run(base) == 2
    assert "has no record of what made it" in capsys.readouterr().err
    alone = {name: base[name] for name in ("evaluation_set", "gold_data_path", "predictions_path")}
    result = eval(EvalSettings(**alone))
    # otto is otto, "a river" is river, nothing is not mara, "the stone" is not bridge.
    assert _values(result) == {"em": 50, "f1": 50}
    assert result.evaluations[0].model is None
    _write(base["predictions_path"], ["otto"] * 3)
    assert run(alone) == 2
    assert "has 3 lines, but the evaluation set has 4 questions" in capsys.readouterr().err


def test_titles_without_a_record(retrieval: dict[str, Any], folder: Path) -> None:
    _write(retrieval["predictions_path"], ["town\thill", "king\triver", "", "bridge\tstone"])
    names = ("evaluation_set", "gold_data_path", "predictions_path", "eval_mode")
    result = eval(EvalSettings(**{name: retrieval[name] for name in names}, k=2))
    # Of two titles each: {town}, {river}, none, {bridge, stone}: (1 + 1 + 0 + 2) / 2 / 4. First hits: 1, 2, none, 1.
    assert _values(result) == {"precision_at_2": 50, "mrr_title": 62.5}


def test_predictions_that_were_made_are_scored_without_their_model(base: dict[str, Any]) -> None:
    made = eval(EvalSettings(**base))
    scored = eval(
        EvalSettings(
            evaluation_set=base["evaluation_set"],
            gold_data_path=base["gold_data_path"],
            predictions_path=base["predictions_path"],
        )
    )
    assert scored.evaluations[0].scores == made.evaluations[0].scores
    assert scored.evaluations[0].model == base["model_name_or_path"]


def test_compare_tests_in_pairs(base: dict[str, Any], folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Forty questions; the others are right twelve times more, so that chance is ruled out, then once more."""
    questions = [f"question {i} ?" for i in range(40)]
    settings = {
        "evaluation_set": _write(folder / "q", questions),
        "gold_data_path": _write(folder / "g", ["blue"] * 40),
        "gold_data_mode": "ans",
        "predictions_path": _write(folder / "p", ["blue"] * 10 + ["red"] * 30),
    }
    _write(folder / "better", ["blue"] * 22 + ["red"] * 18)
    _write(folder / "same", ["blue"] * 11 + ["red"] * 29)
    assert run({**settings, "compare": folder / "better"}) == 0
    shown = capsys.readouterr().out
    assert "EM 25.0 against 55.0: -30.0" in shown
    assert ": a significant difference at 5 %." in shown
    assert json.loads((folder / "p.metrics.json").read_text())["comparisons"]["em"]["significant"] is True
    result = eval(EvalSettings(**settings, compare=folder / "same"))
    comparison = result.evaluations[0].comparisons["em"]
    assert (comparison.difference, comparison.p_value) == (-2.5, 1)
    assert run({**settings, "compare": folder / "same"}) == 0
    assert "no significant difference at 5 %." in capsys.readouterr().out


def test_compare_covers_what_both_have(base: dict[str, Any], folder: Path) -> None:
    eval(EvalSettings(**base))
    other = {**base, "predictions_path": folder / "token.txt", "model_type": "rag_token"}
    result = eval(EvalSettings(**other, compare=base["predictions_path"]))
    comparisons = result.evaluations[0].comparisons
    assert list(comparisons) == ["em", "f1", "recall_at_1", "recall_at_3", "mrr_answer"]
    # Both retrieve the same passages.
    assert comparisons["recall_at_3"].difference == 0
    _write(folder / "short", ["x"] * 3)
    assert run({**other, "compare": folder / "short"}) == 2


def test_every_checkpoint_has_predictions_of_its_own(
    base: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "run"
    for name in ("checkpoint5", "checkpoint10"):
        shutil.copytree(base["model_name_or_path"], output / name)
    _change_weights(output / "checkpoint10")
    (output / "best").symlink_to("checkpoint5")
    (output / "last").symlink_to("checkpoint10")
    (output / "tensorboard").mkdir()
    assert run({**base, "model_name_or_path": output}, "--eval_all_checkpoints") == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split()[:3] == ["checkpoint", "EM", "F1"]
    assert [line.split()[0] for line in lines[1:3]] == ["checkpoint5", "checkpoint10"]
    folder = base["predictions_path"].parent
    five, ten = ((folder / f"predictions.checkpoint{n}.txt").read_text() for n in (5, 10))
    assert five != ten
    assert len(list(folder.glob("predictions.*.txt"))) == 2
    # The same as each evaluated alone.
    alone = {**base, "model_name_or_path": output / "checkpoint10", "predictions_path": folder / "alone.txt"}
    assert run(alone) == 0
    assert (folder / "alone.txt").read_text() == ten
    again = eval(EvalSettings(**{**base, "model_name_or_path": str(output)}, eval_all_checkpoints=True))
    assert [evaluation.reused for evaluation in again.evaluations] == [True, True]


def test_closed_book(base: dict[str, Any], models_folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    closed = {**base, "model_name_or_path": str(models_folder / "generator"), "passages_path": None, "n_docs": None}
    result = eval(EvalSettings(**closed, model_type="bart"))
    assert list(_values(result)) == ["em", "f1"]
    titles = {"eval_mode": "retrieval", "gold_data_path": base["evaluation_set"].parent / "gold.titles"}
    assert run({**closed, **titles, "predictions_path": base["predictions_path"].parent / "t"}) == 2
    assert "A bart model retrieves nothing" in capsys.readouterr().err
    assert not (base["predictions_path"].parent / "t").exists()
    assert run({**closed, "model_type": "t5"}) == 2
    assert "is a bart model, not t5" in capsys.readouterr().err
    assert run({**base, "model_type": "bart"}, "--recalculate") == 2
    assert "is a RAG checkpoint" in capsys.readouterr().err


def test_more_passages_than_there_are(retrieval: dict[str, Any]) -> None:
    result = eval(EvalSettings(**{**retrieval, "n_docs": 50}))
    lines = retrieval["predictions_path"].read_text(encoding="utf-8").splitlines()
    assert [len(line.split("\t")) for line in lines] == [6, 6, 6, 6]
    assert _values(result)["mrr_title"] > 0


def test_batches_do_not_change_answers(base: dict[str, Any], folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen, inner = [], RagModel.generate

    def watched(self: Any, questions: Any, decoding: Any, *rest: Any) -> Any:
        seen.append((len(questions), decoding.num_beams, decoding.min_length, decoding.max_length))
        return inner(self, questions, decoding, *rest)

    monkeypatch.setattr(RagModel, "generate", watched)
    base |= {"num_beams": 3, "min_length": 4, "max_length": 9}
    eval(EvalSettings(**base))
    one = {**base, "predictions_path": folder / "one.txt"}
    eval(EvalSettings(**one, eval_batch_size=3))
    assert seen == [(size, 3, 4, 9) for size in (4, 3, 1)]
    assert (folder / "one.txt").read_text() == base["predictions_path"].read_text()


def test_an_index_file_that_is_elsewhere_is_searched(
    retrieval: dict[str, Any], folder: Path, source_folder: Path
) -> None:
    vectors = KnowledgeSource(source_folder).store.vectors(np.arange(6))
    build_index(lambda: iter([vectors[::-1]]), 6, 16, "Flat", folder / "reversed.faiss")
    eval(EvalSettings(**retrieval))
    other = {**retrieval, "predictions_path": folder / "other.txt", "index_path": str(folder / "reversed.faiss")}
    eval(EvalSettings(**other))
    assert (folder / "other.txt").read_text() != retrieval["predictions_path"].read_text()


BAD = {
    "no such file": ({"evaluation_set": "missing"}, "missing cannot be read: No such file or directory"),
    "empty line": ({"evaluation_set": "empty_line"}, "empty_line, line 2: an empty line"),
    "empty file": ({"evaluation_set": "empty"}, "empty is empty"),
    "not UTF-8": ({"evaluation_set": "latin1"}, "latin1, line 2: byte 23 is not UTF-8 (0xe9)"),
    "gold of other length": ({"gold_data_path": "short"}, "short has 3 lines, but the evaluation set has 4"),
    "gold of other questions": ({"gold_data_path": "swapped"}, "swapped, line 1: the question"),
    "gold no list": ({"gold_data_path": "malformed"}, "malformed, line 3: 'otto' is not a list of strings"),
    "gold is code": ({"gold_data_path": "code"}, "code, line 1: "),
    "no model": ({"model_name_or_path": "no/such-model"}, "is neither a folder nor a model that can be reached"),
    "no source": ({"passages_path": "nowhere"}, "There is no knowledge source"),
    "source is a folder of text": ({"passages_path": "."}, "is not a knowledge source"),
    "index of other count": ({"index_path": "five.faiss"}, "holds 5 vectors, but"),
    "index of other dimension": ({"index_path": "narrow.faiss"}, "has 8 dimensions, but"),
    "source of other dimension": ({"passages_path": "narrow"}, "makes question vectors of 16 dimensions, but"),
    "encoder of another source": ({"model_name_or_path": "partnered"}, "was built with the passage encoder"),
    "no index": ({"index_path": "short"}, "is not a FAISS index"),
    "k above n_docs": ({"eval_mode": "retrieval", "k": 4}, "--k 4 looks at more titles than --n_docs 3"),
    "no passages": ({"n_docs": 0}, "--n_docs is 0, but must be at least 1"),
    "published index": (
        {"index_name": "compressed"},
        "--index_name compressed names a published index; with --passages_path leave it out or give custom.",
    ),
    "no beams": ({"num_beams": 0}, "num_beams is 0"),
    "lengths": ({"min_length": 9}, "min_length 9 is above max_length 8"),
    "answers twice": ({"gold_answers_path": "short"}, "--gold_answers_path is for --eval_mode retrieval"),
    "overwriting": ({"predictions_path": "test.source"}, "--predictions_path and --evaluation_set are the same file"),
    "a folder": ({"predictions_path": "."}, "is a folder"),
    "retrieval without": ({"eval_mode": "retrieval", "model_type": "t5"}, "A t5 model retrieves nothing"),
    "no model to predict": ({"model_name_or_path": None}, "There are no predictions"),
    "no checkpoints": ({"model_name_or_path": "narrow", "eval_all_checkpoints": True}, "has no checkpoint folders"),
    "unknown type": ({"model_type": "gpt"}, "--model_type"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input_is_one_sentence(
    case: str,
    base: dict[str, Any],
    folder: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    lines = (folder / "gold.tsv").read_text().splitlines()
    _write(folder / "empty_line", [QUESTIONS[0], "", *QUESTIONS[2:]])
    _write(folder / "empty", [])
    (folder / "latin1").write_bytes(f"{QUESTIONS[0]}\né\n".encode("latin1"))
    _write(folder / "short", lines[:3])
    _write(folder / "swapped", [lines[1], lines[0], *lines[2:]])
    _write(folder / "malformed", [*lines[:2], f"{QUESTIONS[2]}\totto", lines[3]])
    _write(folder / "code", [f"{QUESTIONS[0]}\t[open('{folder}/evaluated', 'w').name]", *lines[1:]])
    _other_sources(folder, Path(base["model_name_or_path"]))
    monkeypatch.chdir(folder)
    before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    change, told = BAD[case]
    assert run({**base, **change}) == 2
    captured = capsys.readouterr()
    assert told in captured.err
    assert captured.err.count("\n") == 1
    assert "Traceback" not in captured.err
    assert captured.out == ""
    assert {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()} == before


def _other_sources(folder: Path, checkpoint: Path) -> None:
    """Indexes and a source that do not belong together, and a checkpoint that knows its passage encoder."""
    wide, narrow = np.eye(5, 16, dtype=np.float32), np.eye(6, 8, dtype=np.float32)
    build_index(lambda: iter([wide]), 5, 16, "Flat", folder / "five.faiss")
    build_index(lambda: iter([narrow]), 6, 8, "Flat", folder / "narrow.faiss")
    with PassageWriter(folder / "narrow" / PASSAGES_NAME, 8) as writer:
        writer.write(["title"] * 6, ["text"] * 6, narrow)
    shutil.copyfile(folder / "narrow.faiss", folder / "narrow" / INDEX_NAME)
    shutil.copytree(checkpoint, folder / "partnered")
    config = json.loads((checkpoint / "config.json").read_text())
    config["ragstone"]["passage_encoder"] = {"fingerprint": "0" * 32}
    (folder / "partnered" / "config.json").write_text(json.dumps(config))


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has what is asked for")
def test_fp16_without_a_gpu(base: dict[str, Any], capsys: pytest.CaptureFixture[str]) -> None:
    assert run({**base, "precision": "fp16"}) == 2
    assert "fp16 needs a GPU" in capsys.readouterr().err


def test_in_a_process_of_its_own(base: dict[str, Any]) -> None:
    base["predictions_path"].parent.joinpath("gold.tsv").write_text("no tab\n" * 4, encoding="utf-8")
    words = [word for name, value in base.items() for word in (f"--{name}", str(value))]
    command = [sys.executable, "-m", "ragstone", "eval", *words]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert done.stdout == ""
    assert done.stderr.startswith("ragstone eval: ")
    assert "gold.tsv, line 1: 1 column(s) instead of 2" in done.stderr
    assert done.stderr.count("\n") == 1


def test_the_documentations_commands(
    folder: Path,
    checkpoint_folder: Path,
    source_folder: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Every command of docs/evaluate.md, in a folder laid out as the page says."""
    data = folder / "data"
    data.mkdir()
    for split in ("val", "test"):
        shutil.copy(folder / "test.source", data / f"{split}.source")
        shutil.copy(folder / "gold.tsv", data / f"{split}.gold_qa.tsv")
    shutil.copy(folder / "gold.titles", data / "test.pages")
    _write(data / "test.target", [answers[0] for answers in ANSWERS])
    (folder / "knowledge").symlink_to(source_folder)
    model = open_model(ModelRequest(str(checkpoint_folder), passages_path=str(source_folder)))
    for name in ("checkpoint400", "checkpoint500"):
        model.save(folder / "run" / name)
    (folder / "run" / "best").symlink_to("checkpoint500")
    (folder / "out").mkdir()
    _write(folder / "out" / "by_hand.txt", ["otto", "river", "mara", ""])
    monkeypatch.chdir(folder)
    page = (Path(__file__).parents[2] / "docs" / "evaluate.md").read_text(encoding="utf-8")
    commands = [line.split()[1:] for line in page.splitlines() if line.startswith("    ragstone ")]
    assert len(commands) == 8
    for command in commands:
        assert main(command) == 0, command
    assert (folder / "out" / "val.checkpoint500.txt").is_file()
    named = {f"out/{path.name}" for path in (folder / "out").glob("predictions.txt*")}
    assert named == {name for name in named if f"`{name}`" in page}
    assert len(named) == 5
    capsys.readouterr()
