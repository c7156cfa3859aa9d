"""--retriever on every command that retrieves, over sources with a BM25 index beside the vectors or alone."""

from __future__ import annotations

import json
import shlex
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from safetensors.torch import load_file

from ragstone.__main__ import main
from ragstone.commands.eval import EvalSettings, eval
from ragstone.index.bm25 import Bm25Index
from ragstone.knowledge.source import BM25_NAME, PASSAGES_NAME, KnowledgeSource
from tests.commands.conftest import refused
from tests.conftest import DOCUMENTS

QUESTION = "who founded the old town ?"
QUESTIONS = [QUESTION, "what is the river ?", "who was king ?", "zebra ?"]
TITLES = ["town", "river", "king", "hill"]
RETRIEVERS = ["dense", "bm25", "hybrid"]
WORDS = len({word for document in DOCUMENTS for text in document for word in text.split()})


@pytest.fixture
def questions(tmp_path: Path) -> list[str]:
    """Flags of an evaluation of retrieval."""
    for name, lines in (("test.source", QUESTIONS), ("test.pages", TITLES)):
        (tmp_path / name).write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
    flags = {"evaluation_set": "test.source", "gold_data_path": "test.pages", "predictions_path": "titles.txt"}
    return [word for name, file in flags.items() for word in (f"--{name}", str(tmp_path / file))]


@pytest.fixture
def model(checkpoint_folder: Path, worded_source: Path) -> list[str]:
    return ["--model_name_or_path", str(checkpoint_folder), "--passages_path", str(worded_source), "--n_docs", "3"]


def titles_by_words(folder: Path, question: str, n: int) -> list[str]:
    scores = Bm25Index.open(folder / BM25_NAME).scores(question)
    return [DOCUMENTS[i][0] for i in np.argsort(-scores, kind="stable") if scores[i] > 0][:n]


def test_build_with_bm25_beside_or_alone(
    tmp_path: Path, documents_file: Path, models_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    build = ["build-knowledge", "--csv_path", str(documents_file), "--max_words", "4", "--num_proc", "1"]
    encoder = ["--dpr_ctx_encoder_model_name", str(models_folder / "passage_encoder"), "--index", "flat"]
    assert main([*build, "--output_dir", str(tmp_path / "both"), *encoder, "--bm25"]) == 0
    shown = capsys.readouterr().out
    assert f"\nBM25              {WORDS} words\n" in shown and "\nvectors           16 dimensions" in shown
    assert main([*build, "--output_dir", str(tmp_path / "alone"), "--index", "bm25"]) == 0
    shown = capsys.readouterr().out
    assert f"passages          12 of at most 4 words\nBM25              {WORDS} words\nsize " in shown
    assert "vectors" not in shown and "recall" not in shown
    both, alone = KnowledgeSource(tmp_path / "both"), KnowledgeSource(tmp_path / "alone")
    rows = range(len(both))
    assert both.store.passages(rows) == alone.store.passages(rows)
    np.testing.assert_array_equal(both.bm25.scores(QUESTION), alone.bm25.scores(QUESTION))
    manifest = json.loads((tmp_path / "alone" / "knowledge.json").read_text())
    assert (manifest["encoder"], manifest["dimension"], manifest["index"]) == (None, 0, "bm25")
    files = sorted(str(path.relative_to(tmp_path / "alone")) for path in (tmp_path / "alone").rglob("*.*"))
    assert sorted(manifest["files"]) == [file for file in files if file not in ("knowledge.json", "settings.yaml")]
    assert len([name for name in manifest["files"] if name.startswith(BM25_NAME)]) == 5


def test_datasets_opens_a_source_without_vectors(bm25_source: Path) -> None:
    import datasets

    assert datasets.load_from_disk(str(bm25_source / PASSAGES_NAME)).column_names == ["title", "text"]


@pytest.mark.parametrize(
    ("extra", "part"),
    [
        (["--index", "bm25", "--pooling", "mean"], "--pooling is for vectors, and --index bm25 makes none"),
        (["--index", "bm25", "--normalize"], "--normalize is for vectors"),
        (["--index", "bm25", "--ray"], "--ray is for vectors"),
        (["--index", "bm25", "--d", "3"], "--d is for vectors"),
        (["--index", "bm25", "--csv_path", "marks.tsv"], "No passage has a word of letters or digits"),
    ],
)
def test_builds_that_are_refused(
    tmp_path: Path, documents_file: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str],
    extra: list[str], part: str,
) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    (tmp_path / "marks.tsv").write_text("!\t?!\n")
    flags = ["build-knowledge", "--csv_path", str(documents_file), "--output_dir", "out", *extra]
    assert part in refused(capsys, flags)
    assert [path.name for path in tmp_path.iterdir()] == ["marks.tsv"]


def test_verify(bm25_source: Path, worded_source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["verify", str(bm25_source)]) == 0
    shown = capsys.readouterr().out
    assert "8 files as they were built" in shown and f"BM25              {WORDS} words" in shown
    assert "vectors           none: it is searched by words" in shown
    assert main(["verify", str(worded_source)]) == 0
    shown = capsys.readouterr().out
    assert f"BM25              {WORDS} words" in shown and "16 dimensions, all finite" in shown
    # One bit of it, with and without checksums; then that of other passages; then nothing to search by.
    copy = Path(shutil.copytree(bm25_source, tmp_path / "copy"))
    weights = copy / BM25_NAME / "data.csc.index.npy"
    content = bytearray(weights.read_bytes())
    content[-1] ^= 0x80
    weights.write_bytes(content)
    assert f"{weights} is damaged: its checksum" in refused(capsys, ["verify", str(copy)])
    (copy / "knowledge.json").unlink()
    assert f"The BM25 index {copy / BM25_NAME} is damaged" in refused(capsys, ["verify", str(copy)])
    shutil.rmtree(copy / BM25_NAME)
    from ragstone.index.bm25 import build_bm25

    build_bm25((f"{title} {text}" for title, text in reversed(DOCUMENTS)), copy / BM25_NAME)
    assert "for row 0 of" in refused(capsys, ["verify", str(copy)])
    shutil.rmtree(copy / BM25_NAME)
    assert "holds neither vectors nor a BM25 index" in refused(capsys, ["verify", str(copy)])


@pytest.mark.parametrize("retriever", RETRIEVERS)
def test_ask(model: list[str], worded_source: Path, retriever: str, capsys: pytest.CaptureFixture[str]) -> None:
    flags = ["ask", *model, "--retriever", retriever, "--max_length", "8", "--question", QUESTION]
    assert main([*flags, "--json"]) == 0
    record = json.loads(capsys.readouterr().out)
    assert len(record["passages"]) == 3
    assert sum(passage["prior"] for passage in record["passages"]) == pytest.approx(1)
    if retriever == "bm25":
        assert [p["title"] for p in record["passages"]] == titles_by_words(worded_source, QUESTION, 3)
    if retriever == "hybrid":
        assert main([*flags, "--hybrid_weight", "0.01", "--json"]) == 0
        again = [p["title"] for p in json.loads(capsys.readouterr().out)["passages"]]
        assert again == titles_by_words(worded_source, QUESTION, 3)


def test_ask_about_words_that_are_not_there(
    checkpoint_folder: Path, bm25_source: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    flags = ["ask", "--model_name_or_path", str(checkpoint_folder), "--passages_path", str(bm25_source)]
    assert main([*flags, "--question", "zebra ?", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["passages"] == []


@pytest.mark.parametrize("retriever", RETRIEVERS)
def test_finetune(
    model: list[str], pairs_folder: Path, tmp_path: Path, checkpoint_folder: Path, retriever: str,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    """The question encoder learns where it is asked; the checkpoint finds as it was trained to."""
    flags = ["finetune", *model, "--data_dir", str(pairs_folder), "--output_dir", str(tmp_path / "run")]
    flags += ["--train_batch_size", "5", "--num_train_epochs", "1", "--learning_rate", "0.01", "--num_beams", "1"]
    flags += ["--do_train", "--do_predict", "--retriever", retriever]
    flags += ["--hybrid_fusion", "rrf"] if retriever == "hybrid" else []
    assert main(flags) == 0
    before, after = (load_file(path / "model.safetensors") for path in (checkpoint_folder, tmp_path / "run" / "best"))
    changed = {name.split(".")[1] for name in before if not torch.equal(before[name], after[name])}
    assert changed == ({"generator"} if retriever == "bm25" else {"generator", "question_encoder"})
    assert len((tmp_path / "run" / "test_predictions.txt").read_text().splitlines()) == 3
    recorded = json.loads((tmp_path / "run" / "best" / "config.json").read_text())["ragstone"]["retrieval"]
    assert recorded.get("retriever", "dense") == retriever
    other = "dense" if retriever == "bm25" else "bm25"
    changed_flags = [word for word in flags if word not in ("--hybrid_fusion", "rrf")] + ["--resume"]
    changed_flags[changed_flags.index("--retriever") + 1] = other
    assert f"--retriever ({retriever} then, {other} now)" in refused(capsys, changed_flags)


def test_finetune_over_words_alone(
    checkpoint_folder: Path, pairs_folder: Path, bm25_source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    flags = ["finetune", "--model_name_or_path", str(checkpoint_folder), "--passages_path", str(bm25_source)]
    flags += [
        "--data_dir",
        str(pairs_folder),
        "--output_dir",
        str(tmp_path / "run"),
        "--num_beams",
        "1",
        "--n_docs",
        "2",
    ]
    assert main([*flags, "--max_steps", "1"]) == 0
    capsys.readouterr()
    assert main(["ask", "--model_name_or_path", str(tmp_path / "run" / "best"), "--question", QUESTION, "--json"]) == 0
    passages = json.loads(capsys.readouterr().out)["passages"]
    assert [p["title"] for p in passages] == titles_by_words(bm25_source, QUESTION, 2)


def test_finetune_flags_that_are_refused(
    checkpoint_folder: Path, pairs_folder: Path, source_folder: Path, worded_source: Path, bm25_source: Path,
    tmp_path: Path, capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    base = ["finetune", "--model_name_or_path", str(checkpoint_folder), "--data_dir", str(pairs_folder)]
    base += ["--output_dir", str(tmp_path / "run"), "--passages_path"]
    ray = ["--distributed_retriever", "ray"]
    for extra, part in (
        ([str(worded_source), "--retriever", "bm25", *ray], "Ray workers search vectors, not words"),
        ([str(worded_source), "--retriever", "hybrid", *ray, "--index_shards", "2"], "Ray workers search vectors"),
        ([str(bm25_source), *ray], "Ray workers search vectors, not words"),
        ([str(bm25_source), "--index_device", "cuda"], "--index_device cuda searches vectors"),
        ([str(bm25_source), "--retriever", "dense"], "has no vectors"),
        ([str(source_folder), "--retriever", "hybrid"], "has no BM25 index, which --retriever hybrid searches"),
        (
            [str(worded_source), "--retriever", "bm25", "--question_encoder_learning_rate", "1e-5"],
            "--retriever bm25 does not ask the question encoder",
        ),
        ([str(worded_source), "--retriever", "bm25", "--hybrid_weight", "0.5"], "is for --retriever hybrid, not bm25"),
        (
            [str(worded_source), "--retriever", "sparse"],
            "must be one of dense, bm25, hybrid",
        ),
    ):
        assert part in refused(capsys, [*base, *extra]), extra
    assert not any(tmp_path.iterdir())


def test_eval_compares_retrievers_on_one_table(
    model: list[str], questions: list[str], worded_source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    flags = ["eval", "--eval_mode", "retrieval", *model, *questions, "--compare_retrievers", *RETRIEVERS]
    assert main(flags) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split()[:2] == ["retriever", "Precision@1"]
    assert [line.split()[0] for line in lines[1:4]] == RETRIEVERS
    predictions = [(tmp_path / f"titles.{name}.txt").read_text().splitlines() for name in RETRIEVERS]
    assert len({str(found) for found in predictions}) == 3
    by_words = [titles_by_words(worded_source, question, 3) for question in QUESTIONS]
    assert [line.split("\t") if line else [] for line in predictions[1]] == by_words
    assert by_words[3] == []
    precision = 100 * np.mean([found[:1] == [gold] for found, gold in zip(by_words, TITLES, strict=True)])
    assert f"{precision:.1f}  [" in lines[2]
    record = json.loads((tmp_path / "titles.hybrid.txt.json").read_text())
    flags_in_force = {"retriever": "hybrid", "hybrid_fusion": "sum", "hybrid_weight": 0.5}
    assert flags_in_force.items() <= record["settings"].items()
    assert json.loads((tmp_path / "titles.bm25.txt.metrics.json").read_text())["retriever"] == "bm25"
    # Each is what it is alone, and is taken again where it fits.
    alone = [*flags[: flags.index("--compare_retrievers")], "--retriever", "hybrid"]
    assert main([*alone, "--predictions_path", str(tmp_path / "alone.txt")]) == 0
    assert (tmp_path / "alone.txt").read_text().splitlines() == predictions[2]
    saved = yaml.safe_load((tmp_path / "titles.bm25.txt.settings.yaml").read_text())
    assert saved["compare_retrievers"] == RETRIEVERS
    capsys.readouterr()
    assert main(["eval", "--config", str(tmp_path / "titles.bm25.txt.settings.yaml")]) == 0
    assert capsys.readouterr().out.count("(reused)") == 3
    told = "do not fit: they differ in --hybrid_weight (0.5 then, 0.4 now);"
    capsys.readouterr()
    assert main([*flags, "--hybrid_weight", "0.4"]) == 2
    assert told in capsys.readouterr().err
    assert main([*alone, "--retriever", "dense", "--predictions_path", str(tmp_path / "alone.txt")]) == 2
    assert "--retriever (hybrid then, None now)" in capsys.readouterr().err


@pytest.mark.parametrize("retriever", ["bm25", "hybrid"])
def test_eval_of_answers(model: list[str], tmp_path: Path, questions: list[str], retriever: str) -> None:
    (tmp_path / "gold.ans").write_text("otto\nblue\nmara\nred\n")
    given = dict(zip(model[::2], model[1::2], strict=True))
    result = eval(
        EvalSettings(
            evaluation_set=tmp_path / "test.source",
            gold_data_path=tmp_path / "gold.ans",
            gold_data_mode="ans",
            model_name_or_path=given["--model_name_or_path"],
            passages_path=given["--passages_path"],
            predictions_path=tmp_path / "answers.txt",
            n_docs=3,
            num_beams=1,
            max_length=8,
            retriever=retriever,  # type: ignore[arg-type]
        )
    )  # fmt: skip
    assert {"em", "f1", "recall_at_3", "mrr_answer"} <= set(result.evaluations[0].scores)


def test_eval_flags_that_are_refused(
    model: list[str], questions: list[str], bm25_source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = sorted(tmp_path.iterdir())
    base = ["eval", *questions, *model, "--eval_mode", "retrieval"]
    compare = ["--compare_retrievers", "dense", "bm25"]
    cases: list[tuple[list[str], str]] = [
        ([*compare, "--eval_mode", "e2e"], "give --eval_mode retrieval with it"),
        ([*compare, "--eval_all_checkpoints"], "leave --eval_all_checkpoints out"),
        ([*compare, "--model_name_or_path", "None"], "--compare_retrievers needs --model_name_or_path"),
        ([*compare, "--retriever", "bm25"], "leave one of them out"),
        ([*compare, "--hybrid_weight", "0.5"], "are for hybrid, which --compare_retrievers lacks"),
        (["--compare_retrievers", "bm25", "bm25"], "--compare_retrievers names bm25 twice"),
        (["--compare_retrievers", "bm25", "tfidf"], "must be one of dense, bm25, hybrid"),
        # Before the first of them is evaluated.
        (["--compare_retrievers", "bm25", "dense", "--passages_path", str(bm25_source)], "has no vectors"),
        (["--retriever", "hybrid", "--hybrid_weight", "1"], "--hybrid_weight is 1.0, but must lie between 0 and 1"),
    ]
    for extra, part in cases:
        assert part in refused(capsys, [*base, *extra]), extra
    assert sorted(tmp_path.iterdir()) == before


def test_the_documentations_commands(
    tmp_path: Path,
    models_folder: Path,
    documents_file: Path,
    checkpoint_folder: Path,
    pairs_folder: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Every command of docs/search-by-words.md, in a folder that holds what the page says."""
    (tmp_path / "retriever").symlink_to(models_folder)
    (tmp_path / "rag").symlink_to(checkpoint_folder)
    (tmp_path / "documents.tsv").symlink_to(documents_file)
    data = Path(shutil.copytree(pairs_folder, tmp_path / "data"))
    for split in ("val", "test"):
        asked = (data / f"{split}.source").read_text().splitlines()
        (data / f"{split}.pages").write_text("".join(f"{title}\n" for title, _ in DOCUMENTS[: len(asked)]))
        (data / f"{split}.gold_qa.tsv").write_text("".join(f"{question}\t['stone']\n" for question in asked))
    monkeypatch.chdir(tmp_path)
    page = (Path(__file__).parents[2] / "docs" / "search-by-words.md").read_text(encoding="utf-8")
    commands = [shlex.split(line)[1:] for line in page.splitlines() if line.startswith("    ragstone ")]
    assert len(commands) == 10
    for command in commands:
        assert main(command) == 0, command
    assert {path.name for path in tmp_path.iterdir()} >= {"knowledge", "knowledge-of-words", "run-words", "run-hybrid"}
    assert (tmp_path / "out" / "titles.bm25.txt").is_file()
    shown = capsys.readouterr().out
    assert shown.count("\nretriever  Precision@1") == 2
    assert "against out/rrf.hybrid.txt:" in shown
