"""The job on real questions: its table, and the whole script on data of the same layout."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from pathlib import Path

import pytest

from benchmarks.exact_retrieval import main as hold_against_exact_search
from benchmarks.openqa_table import main as write_table
from ragstone.__main__ import main
from ragstone.index.vector_index import build_index
from ragstone.knowledge.source import KnowledgeSource

ROOT = Path(__file__).parents[1]
FACTS = [
    ("Anna", "bridge", "river"),
    ("Otto", "town", "hill"),
    ("Mara", "castle", "lake"),
    ("Karl", "mill", "brook"),
    ("Vera", "tower", "shore"),
    ("Hugo", "market", "square"),
]
"""Who built what, and where it stands."""


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """Documents about six buildings, and questions about them: twelve to train on, six to validate, six to test."""
    folder = tmp_path / "data"
    folder.mkdir()
    # Long enough for clozes.
    text = "{1} built the {0} when the country was young. It stands by the {2}, and many people know it well."
    documents = [f"The {what}\t{text.format(what, who, where)}\n" for who, what, where in FACTS]
    (folder / "knowledge.tsv").write_text("".join(documents), encoding="utf-8")
    builders = [(f"who built the {what}?", who, f"The {what}") for who, what, _ in FACTS]
    places = [(f"where does the {what} stand?", f"by the {where}", f"The {what}") for _, what, where in FACTS]
    for split, asked in (("train", builders + places), ("val", builders), ("test", places)):
        (folder / f"{split}.source").write_text("".join(f"{q}\n" for q, _, _ in asked), encoding="utf-8")
        (folder / f"{split}.target").write_text("".join(f"{a}\n" for _, a, _ in asked), encoding="utf-8")
        if split != "train":
            (folder / f"{split}.gold_qa.tsv").write_text("".join(f"{q}\t{[a]!r}\n" for q, a, _ in asked))
            (folder / f"{split}.pages").write_text("".join(f"{title}\n" for _, _, title in asked))
    return folder


def test_a_source_is_held_against_exact_search(
    tmp_path: Path, data: Path, minilm_folder: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """An index whose vectors are in another order than the passages is found out."""
    flags = [f"--csv_path={data / 'knowledge.tsv'}", f"--dpr_ctx_encoder_model_name={minilm_folder}", "--index=flat"]
    assert main(["build-knowledge", *flags, f"--output_dir={tmp_path / 'knowledge'}"]) == 0
    capsys.readouterr()
    asked = (tmp_path / "knowledge", minilm_folder, data / "test.source")
    assert hold_against_exact_search(*asked, tmp_path / "exact.txt") == 0
    said = capsys.readouterr().out
    assert "6 questions, 6 passages, 6 each: 100.0000% at the same place" in said
    assert (tmp_path / "exact.txt").read_text(encoding="utf-8") == said
    source = KnowledgeSource(tmp_path / "knowledge")
    vectors = source.store.vectors(range(6))
    build_index(lambda: iter([vectors[::-1]]), 6, source.dimension, "Flat", source.index_path)
    assert hold_against_exact_search(*asked) == 1


def test_the_table(
    tmp_path: Path, data: Path, checkpoint_folder: Path, models_folder: Path, source_folder: Path
) -> None:
    """Of evaluations of tiny models; its numbers are those of the files that ragstone eval writes."""
    (tmp_path / "knowledge").symlink_to(source_folder)
    for run in ("rag_practice", "rag_run"):
        (tmp_path / run).mkdir()
        (tmp_path / run / "settings.yaml").write_text(f"max_steps: {len(run)}\n", encoding="utf-8")
    question = [f"--evaluation_set={data / 'test.source'}", "--precision=fp32", "--max_length=4", "--num_beams=1"]
    rag = [*question, f"--model_name_or_path={checkpoint_folder}", f"--passages_path={source_folder}"]
    answers, titles = [f"--gold_data_path={data / 'test.gold_qa.tsv'}"], [f"--gold_data_path={data / 'test.pages'}"]
    closed = ["eval", *question, *answers, f"--model_name_or_path={models_folder / 'generator'}"]
    (tmp_path / "exact.txt").write_text("6 questions: all the same\n", encoding="utf-8")
    place = tmp_path / "eval"
    place.mkdir()
    assert main([*closed, f"--predictions_path={place / 'test.closed.txt'}"]) == 0
    read = ["eval", *rag, *answers, "--n_docs=3", f"--predictions_path={place / 'test.rag.txt'}"]
    assert main([*read, f"--compare={place / 'test.closed.txt'}"]) == 0
    found = ["eval", *rag, *titles, "--eval_mode=retrieval", f"--gold_answers_path={data / 'test.gold_qa.tsv'}"]
    assert main([*found, "--n_docs=100", f"--predictions_path={place / 'test.minilm.titles'}"]) == 0
    for name in ("minilm.titles", "closed.txt", "rag.txt"):
        shutil.copy(place / f"test.{name}.metrics.json", place / f"val.{name}.metrics.json")
    for split in ("val", "test"):
        shutil.copy(place / f"{split}.minilm.titles.metrics.json", place / f"{split}.rag.titles.metrics.json")
    write_table(tmp_path)
    text = (tmp_path / "table.md").read_text(encoding="utf-8")
    assert "Knowledge source: 6 documents, 6 passages of at most 100 words, 16 dimensions, index Flat," in text
    assert "Searched, and exactly without Ragstone: 6 questions: all the same." in text
    assert "Steps: practice 12, questions 7, RAG and closed book alike." in text
    rows = [line.split(" | ") for line in text.splitlines() if line.startswith("| r") or "(6)" in line]
    assert len(rows) == 2 * (3 + 2 + 5 + 5)
    scores = json.loads((place / "test.minilm.titles.metrics.json").read_text(encoding="utf-8"))["scores"]
    recall = scores["recall_at_100"]
    assert (
        f"| retrieval, MiniLM | test (6) | recall_at_100 | {recall['value']:.1f} | "
        f"{recall['low']:.1f} to {recall['high']:.1f} |"
    ) in text
    assert text.count("significant at 5 %") == 4


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_the_whole_script(tmp_path: Path, data: Path) -> None:
    """Every step of it; started again, it does nothing twice and makes the same table."""
    out = tmp_path / "out"
    few = {**os.environ, "PRACTICE_STEPS": "4", "STEPS": "4", "OMP_NUM_THREADS": "1"}
    command = [str(ROOT / "scripts" / "openqa.sh"), str(data), str(out)]
    for start in range(2):
        done = subprocess.run(command, capture_output=True, text=True, check=False, env=few)
        assert done.returncode == 0, done.stderr
        assert done.stdout.count("\n$ ") == 18
        assert done.stdout.count("(done already)") == 18 * start
    table = (out / "table.md").read_text(encoding="utf-8")
    assert "Steps: practice 4, questions 4, RAG and closed book alike." in table
    for system in ("RAG-Sequence", "closed book", "retrieval, MiniLM", "retrieval, trained"):
        assert table.count(f"| {system} | val (6) |") == table.count(f"| {system} | test (6) |") > 1
    # The real encoder finds each building's document.
    assert "| retrieval, MiniLM | test (6) | recall_at_5 | 100.0 |" in table


def test_what_it_needs_is_said() -> None:
    done = subprocess.run([str(ROOT / "scripts" / "openqa.sh")], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (2, "usage: scripts/openqa.sh DATA_DIR OUT_DIR\n")
