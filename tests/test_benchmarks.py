"""The benchmarks run and say what they promise; what they measure is no matter of tests."""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from benchmarks.retrieval import main
from benchmarks.retrieval_record import COLUMNS, Record

ROOT = Path(__file__).parents[1]
VECTORS = 2000
SLOW_RAY = [pytest.mark.slow, pytest.mark.xdist_group("ray")]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the benchmark keeps its knowledge source."""
    return tmp_path_factory.mktemp("sources")


@pytest.fixture
def environment() -> Iterator[dict[str, str]]:
    """Variables that give Ray a folder of its own, whose name is short, as its sockets need."""
    place = tempfile.mkdtemp(prefix="ray-", dir="/tmp")
    yield {**os.environ, "HOME": place, "RAY_TMPDIR": place}
    shutil.rmtree(place)


@pytest.mark.slow
def test_compare(tmp_path: Path, checkpoint_folder: Path, source_folder: Path) -> None:
    """Both sides do the works on a tiny checkpoint and agree, as far as the benchmark demands."""
    (tmp_path / "test.source").write_text("who founded the town ?\nwhat is blue ?\n" * 20)
    (tmp_path / "test.target").write_text("otto\nthe old river\n" * 20)
    figures, results = tmp_path / "figures.json", tmp_path / "compare.md"
    where = [f"--checkpoint={checkpoint_folder}", f"--passages_path={source_folder}", f"--data_dir={tmp_path}"]
    what = ["--only=train_sequence,train_token,generate_token,retrieve,build_knowledge", "--n_docs=3"]
    command = [sys.executable, "-m", "benchmarks.compare", *where, *what, f"--json={figures}", f"--results={results}"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    records: list[dict[str, Any]] = json.loads(figures.read_text())
    assert [record["name"] for record in records] == what[0].removeprefix("--only=").split(",")
    for record in records:
        assert record["ratio"] == pytest.approx(record["reference_s"] / record["ragstone_s"])
        assert min(record["reference_mib"], record["ragstone_mib"]) > 100
        assert f"| {record['name']} |" in results.read_text()


@pytest.mark.parametrize(
    ("backends", "processes", "askers"),
    [
        ("in-process,pytorch", [1, 2], [1, 1]),
        pytest.param("ray-1,ray-2", [1, 1], [1, 2], marks=SLOW_RAY),
    ],
)
def test_retrieval(
    folder: Path, tmp_path: Path, environment: dict[str, str], backends: str, processes: list[int], askers: list[int]
) -> None:
    figures, results = tmp_path / "figures.json", tmp_path / "results" / "retrieval.md"
    program = [sys.executable, "-W", "error", "-m", "benchmarks.retrieval"]
    what = [f"--folder={folder}", f"--sizes={VECTORS}", "--indexes=flat", f"--backends={backends}", "--batches=4"]
    command = [*program, *what, f"--json={figures}", f"--results={results}"]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    records: list[dict[str, Any]] = json.loads(figures.read_text())
    assert [record["backend"] for record in records] == backends.split(",")
    assert [record["processes"] for record in records] == processes
    assert [record["askers"] for record in records] == askers
    for record in records:
        assert set(record) == {field.name for field in dataclasses.fields(Record)}
        assert (record["vectors"], record["index"], record["recall_at_5"]) == (VECTORS, "flat", 1.0)
        assert (record["questions"], record["n_docs"], record["batches"]) == (32, 5, 4)
        assert len(record["rank_median_ms"]) == len(record["rank_p99_ms"]) == record["processes"]
        assert min(record["threads"], record["bare_median_ms"], record["queries_per_second"]) > 0
        assert record["p99_ms"] >= record["median_ms"] > 0 < min(record["rank_median_ms"])
        assert record["overhead_ms"] == pytest.approx(record["median_ms"] - record["bare_median_ms"], abs=2e-3)
        assert (record["within"] is None) == (record["allowed_ms"] is None) == (record["backend"] == "in-process")
        if record["allowed_ms"] is not None:
            assert record["within"] == (record["overhead_ms"] <= record["allowed_ms"])
        assert f"│ {record['backend']} " in done.stdout
    rows = [line.split(" | ") for line in results.read_text().splitlines() if line.startswith("| ")]
    assert [row[2] for row in rows] == ["backend", "---", *backends.split(",")]
    assert {len(row) for row in rows} == {len(COLUMNS)}


def test_retrieval_says_what_it_leaves_out(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([f"--folder={tmp_path / 'none'}", "--sizes=9000000", "--indexes=hnsw"]) == 0
    assert "Left out: hnsw over 9,000,000 vectors, whose building takes about " in capsys.readouterr().out
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("flag", "message"),
    [
        ("--sizes=10,x", "--sizes is '10,x'; give whole numbers above 0 with commas between them."),
        ("--indexes=flat,tree", "--indexes names 'tree'; there are flat, hnsw, ivfpq."),
        ("--backends=spark", "--backends names 'spark'; there are in-process, pytorch, ray-1, ray-2."),
        ("--batches=0", "--batches is 0; give at least 1."),
        ("--sizes=900000000000", "are needed; give another folder or smaller --sizes."),
    ],
)
def test_retrieval_refuses(tmp_path: Path, capsys: pytest.CaptureFixture[str], flag: str, message: str) -> None:
    assert main([f"--folder={tmp_path}", "--indexes=flat", flag]) == 2
    assert message in capsys.readouterr().err
    assert not list(tmp_path.iterdir())
