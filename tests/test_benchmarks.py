"""The benchmarks run and say what they promise; what they measure is no matter of tests."""

from __future__ import annotations

import dataclasses
import json
import math
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode
from transformers import BartConfig, BartForConditionalGeneration, BertConfig, BertModel

from benchmarks import compare, growth, pictures
from benchmarks.checkpoint import SIZES, VOCABULARY, Workplace
from benchmarks.compare_bench import parts
from benchmarks.compare_record import Record as CompareRecord
from benchmarks.compare_sides import Ragstone, Setup
from benchmarks.compare_works import Inputs, Work, unlike_answers
from benchmarks.fresh import run_fresh
from benchmarks.growth import Point
from benchmarks.machine import multiply_rate
from benchmarks.operations import TRAINING, Generator, Stack, bert
from benchmarks.retrieval import main
from benchmarks.retrieval_record import COLUMNS, Record, median_range
from benchmarks.retrieval_record import record as retrieval_record
from benchmarks.retrieval_timing import Timed
from benchmarks.timeline import Timeline
from ragstone.encoders.precision import fast_bfloat16
from ragstone.errors import InputError
from ragstone.model.fresh import GeneratorSize

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


@pytest.fixture
def questions_folder(tmp_path: Path) -> Path:
    """Test questions in the words of the tiny models."""
    (tmp_path / "test.source").write_text("who founded the town ?\nwhat is blue ?\n" * 20)
    (tmp_path / "test.target").write_text("otto\nthe old river\n" * 20)
    return tmp_path


def run_benchmark(module: str, *words: str) -> None:
    command = [sys.executable, "-m", f"benchmarks.{module}", *words]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


UNROUNDED = ("retrieve", "retrieve_again", "open")
"""Works that are done in fp32 alone."""


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_compare(questions_folder: Path, checkpoint_folder: Path, source_folder: Path, models_folder: Path) -> None:
    """Both sides do all works on a tiny checkpoint and agree, as far as the benchmark demands."""
    folder = questions_folder
    figures, results = folder / "figures.json", folder / "compare.md"
    where = [f"--checkpoint={checkpoint_folder}", f"--passages_path={source_folder}", f"--data_dir={folder}"]
    encoder = models_folder / "passage_encoder"
    what = [f"--passage_encoder={encoder}", f"--work_dir={folder / 'work'}", "--n_docs=3", "--repeats=1"]
    few = ["--embedded=6", "--evaluated=32", "--opened=2000", "--device=cpu"]
    run_benchmark("compare", *where, *what, *few, f"--json={figures}", f"--results={results}")
    records: list[dict[str, Any]] = json.loads(figures.read_text())
    assert list(dict.fromkeys(record["name"] for record in records)) == list(compare.NAMES)
    bf16 = fast_bfloat16(torch.device("cpu"))
    for name in compare.NAMES:
        found = [record for record in records if record["name"] == name]
        assert found[0]["precision"] == "fp32 / fp32"
        assert len(found) == 1 + (bf16 and name not in UNROUNDED)
    for record in records:
        assert record["ratio"] == pytest.approx(record["reference_s"] / record["ragstone_s"])
        assert min(record["reference_mib"], record["ragstone_mib"]) > 100
        assert (record["of_limit"] is None) == (record["name"] in UNROUNDED)
        assert record["parts"] or record["name"] in ("evaluate", "open")
        assert f"| {record['name']} | {record['precision']} |" in results.read_text()
    trained = next(record for record in records if record["name"] == "train_token")
    assert {"tokenising", "encoder", "decoder", "vocabulary", "optimiser", "retrieval"} <= set(trained["parts"])


@pytest.mark.slow
def test_growth(questions_folder: Path, checkpoint_folder: Path, source_folder: Path) -> None:
    folder = questions_folder
    where = [f"--checkpoint={checkpoint_folder}", f"--passages_path={source_folder}", f"--data_dir={folder}"]
    few = ["--passages=1,3", "--target=3,5", "--corpus=1000,2000,4000", "--largest=2000", "--repeats=1"]
    run_benchmark("growth", *where, *few, f"--work_dir={folder / 'work'}", f"--json={folder / 'growth.json'}")
    points = [Point(**each) for each in json.loads((folder / "growth.json").read_text())]
    assert all(point.ms > 0 for point in points)
    both = {"ragstone", "reference"}
    for axis, places in (("passages", (1, 3)), ("target", (3, 5))):
        for at in places:
            for curve in ("train", "generate"):
                assert {each.side for each in points if (each.axis, each.at, each.curve) == (axis, at, curve)} == both
    corpus = [(point.at, point.curve, point.side) for point in points if point.axis == "corpus"]
    assert sorted(corpus) == sorted(
        [(at, curve, side) for at in (1000, 2000) for curve in ("hnsw", "ivfpq") for side in both]
        + [(4000, "ivfpq", "ragstone")]
    )


@pytest.mark.slow
def test_a_small_checkpoint_is_made_once(tmp_path: Path) -> None:
    """With its own tokenizer, the vocabulary of BART, and a training run; the second time it is there."""
    data, work = tmp_path / "data", tmp_path / "work"
    data.mkdir()
    documents = [f"town {number}\tthe town {number} was founded by otto {number}\n" for number in range(8)]
    (data / "knowledge.tsv").write_text("".join(documents))
    for split in ("train", "val", "test"):
        (data / f"{split}.source").write_text("".join(f"who founded town {number} ?\n" for number in range(8)))
        (data / f"{split}.target").write_text("".join(f"otto {number}\n" for number in range(8)))
    size = dataclasses.replace(SIZES["small"], generator=GeneratorSize(16, 1, 1, 2), steps=2)
    place = Workplace(work, data)
    made = place.checkpoint("tiny", size)
    assert json.loads((made / "config.json").read_text())["generator"]["vocab_size"] == VOCABULARY
    times = {path: path.stat().st_mtime_ns for path in work.rglob("*")}
    assert place.checkpoint("tiny", size) == made
    assert {path: path.stat().st_mtime_ns for path in work.rglob("*")} == times


def test_operations_are_those_that_torch_counts() -> None:
    """On a batch without padding, forward and backward."""
    bart = BartConfig(
        vocab_size=300,
        d_model=16,
        encoder_layers=2,
        decoder_layers=3,
        encoder_attention_heads=2,
        decoder_attention_heads=2,
        encoder_ffn_dim=40,
        decoder_ffn_dim=24,
        # Of the fused kernel on a CPU, torch counts no operations.
        attn_implementation="eager",
    )
    model = BartForConditionalGeneration(bart)
    with FlopCounterMode(display=False) as counted:
        loss = model(input_ids=torch.full((3, 17), 5), labels=torch.full((3, 6), 7)).loss
    needed = Generator.of(bart)
    answers = [[6]] * 3
    forward = needed.encode([17] * 3) + needed.decode([17] * 3, answers) + needed.scores(answers)
    assert counted.get_total_flops() == forward
    with FlopCounterMode(display=False) as counted:
        loss.backward()
    assert counted.get_total_flops() == (TRAINING - 1) * forward
    config = BertConfig(
        vocab_size=30,
        hidden_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=40,
        attn_implementation="eager",
    )
    with FlopCounterMode(display=False) as counted:
        BertModel(config, add_pooling_layer=False)(input_ids=torch.full((3, 9), 5))
    assert counted.get_total_flops() == 3 * bert(config).text(9)


def test_operations_of_several_answers_share_their_context() -> None:
    """Keys and values of a context are computed once for all its answers."""
    counter = Generator(Stack(1, 8, 8), Stack(1, 8, 8), 100)
    one, three = counter.decode([20], [[4]]), counter.decode([20], [[4, 4, 4]])
    assert three - counter.decoder.contexts(20) == 3 * (one - counter.decoder.contexts(20))


def test_a_large_matrix_product_is_measured() -> None:
    assert 1e7 < multiply_rate(torch.float32, torch.device("cpu"), [256]) < 1e15


def test_a_timeline_charges_what_passed_to_what_it_is_told() -> None:
    timeline = Timeline()
    timeline.start()
    time.sleep(0.02)
    timeline.mark("first")
    timeline.mark_once("second", "moment")
    timeline.mark_once("third", "moment")
    assert timeline.seconds["first"] >= 0.02 > timeline.seconds["second"]
    assert list(timeline.seconds) == ["first", "second"]


def test_the_parts_of_a_work_are_those_of_a_run_that_is_warmed_up(tmp_path: Path) -> None:
    setup = Setup(*["none of these is opened"] * 4)
    inputs = Inputs([], [], np.empty((0, 8), np.float32), tmp_path, tmp_path, tmp_path)
    runs = iter(["warms up", "counts"])
    work = Work("says which run it is", lambda side, _: side.timeline.mark(next(runs)), lambda *_: None)
    assert list(parts(work, Ragstone(setup), inputs, "fp32")) == ["counts"]


def test_an_answer_that_differs_must_be_as_likely() -> None:
    class Weighs(Ragstone):
        def log_likelihood(self, question: str, answer: str) -> float:
            return {"likely": -1.0, "as likely": -1.000001, "unlikely": -2.0}[answer]

    side = Weighs(Setup(*["none of these is opened"] * 4))
    answers = ["likely", "as likely", "likely"]
    assert unlike_answers(side, "abc", answers, answers) == ""
    said = "; 'likely' for 'unlikely', log-likelihoods -1.0000 and -2.0000"
    assert unlike_answers(side, "abc", ["likely", "as likely", "unlikely"], answers) == said
    assert unlike_answers(side, "abc", ["likely"] * 3, ["likely", "as likely", "unlikely"]) is None
    assert unlike_answers(side, "abc", ["likely"] * 3, ["likely", "as likely", "likely"]) is not None


def test_a_fresh_process_tells_its_peak() -> None:
    done = run_fresh("timeit", ["-n", "1", "-r", "1", "a = b'1' * 150 * 2**20; import time; time.sleep(0.3)"])
    assert done.mib > done.own_mib > 150
    assert done.seconds > 0
    assert done.lines[0].startswith("1 loop")
    with pytest.raises(RuntimeError, match="exit code"):
        run_fresh("timeit", ["1 +"])


RECORD = CompareRecord(
    name="retrieve",
    work="a work",
    precision="fp32 / fp32",
    reference_s=3.0,
    ragstone_s=2.0,
    ratio=1.5,
    reference_mib=600.0,
    ragstone_mib=300.0,
    agreement="alike",
    operations={},
    of_limit=None,
    reference_of_limit=None,
    parts={},
    runs=3,
    size="small",
    device="cpu",
    threads=2,
    fp32_gflops=100.0,
    bf16_gflops=400.0,
    date="2026-11-24",
    commit="abc",
    processor="a processor",
)
TRAINED = dataclasses.replace(
    RECORD,
    name="train_token",
    operations={"encoder": 15 * 10**10},
    of_limit=0.25,
    parts={"encoder": 3.0, "optimiser": 1.0},
)
BEST = dataclasses.replace(TRAINED, precision="fp32 / bf16", ragstone_s=1.0, ratio=3.0, ragstone_mib=200.0)


def test_pictures_and_tables_are_drawn_from_the_figures(tmp_path: Path) -> None:
    results = tmp_path / "results"
    results.mkdir()
    records = [dataclasses.asdict(record) for record in (RECORD, TRAINED, BEST)]
    (results / "compare.json").write_text(json.dumps(records))
    where = ("2026-11-24", "abc", "a processor")
    points = [
        Point("corpus", at, "hnsw", side, ms, *where)
        for at, side, ms in ((10, "ragstone", 1.0), (100, "ragstone", 2.0), (10, "reference", 3.0))
    ]
    (results / "growth.json").write_text(json.dumps([dataclasses.asdict(point) for point in points]))
    (tmp_path / "docs").mkdir()
    for page in ("README.md", "docs/performance.md"):
        (tmp_path / page).write_text(
            "before\n<!-- ratios -->\nold\n<!-- /ratios -->\n<!-- growth --><!-- /growth -->\n"
            "<!-- parts -->\n<!-- /parts -->\n<!-- rates --><!-- /rates -->\nafter\n"
        )
    settings = [f"--results={results}", f"--root={tmp_path}"]
    assert pictures.main(settings) == 0
    first = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    assert pictures.main(settings) == 0
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == first
    assert {path.name for path in (tmp_path / "docs" / "images").iterdir()} == {"compare.svg", "growth-corpus.svg"}
    drawn = (tmp_path / "docs" / "images" / "compare.svg").read_text()
    assert "1.5×" in drawn and "3.0×" in drawn and "train_token" in drawn
    text = (tmp_path / "README.md").read_text()
    assert text.startswith("before\n") and text.endswith("\nafter\n") and "old" not in text
    assert "![Times as fast as transformers' Rag classes](docs/images/compare.svg)" in text
    assert "](images/growth-corpus.svg)" in (tmp_path / "docs" / "performance.md").read_text()
    assert "| `retrieve` | a work | 1.5× | 1.5× | 600 → 300 MiB | 600 → 300 MiB |" in text
    assert "| `train_token` | a work | 1.5× | 3.0× | 600 → 300 MiB | 600 → 200 MiB |" in text
    assert "| train_token | bf16 | 75 | 25 |" in text
    # 50 GFLOP a second of 100 and of 400.
    assert "| train_token | fp32 | 50 |" in text and "| train_token | bf16 | 12 |" in text


def test_pictures_need_figures(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert pictures.main([f"--results={tmp_path}", f"--root={tmp_path}"]) == 2
    assert "run the benchmarks first" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("program", "flag", "message"),
    [
        (compare.main, "--only=retrieve,fly", "--only names 'fly'; there are train_sequence, "),
        (compare.main, "--checkpoint=here", "--checkpoint and --passages_path belong together; give both or neither."),
        (compare.main, "--evaluated=0", "--evaluated is 0, but must be at least 1."),
        (growth.main, "--only=depth", "--only names 'depth'; there are passages, corpus, target."),
        (growth.main, "--corpus=10,x", "--corpus is '10,x'; give whole numbers above 0 with commas between them."),
        (growth.main, "--repeats=0", "--repeats is 0, but must be at least 1."),
    ],
)
def test_compare_and_growth_refuse(
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    program: Callable[[Sequence[str]], int],
    flag: str,
    message: str,
) -> None:
    assert program([f"--data_dir={tmp_path}", f"--work_dir={tmp_path / 'work'}", flag]) == 2
    assert message in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_compare_needs_the_questions_that_it_names(
    tmp_path: Path, pairs_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Before anything is made."""
    assert compare.main([f"--data_dir={pairs_folder}", f"--work_dir={tmp_path / 'work'}", "--evaluated=31"]) == 2
    assert "questions with --evaluated 31, and 32 are answered; give more." in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_a_gpu_that_is_not_there_is_refused() -> None:
    with pytest.raises(InputError, match="torch sees no GPU here"):
        compare.choose_device("cuda")


@pytest.mark.parametrize(
    ("backends", "processes", "askers"),
    [
        pytest.param("in-process,pytorch", [1, 2], [1, 1], marks=pytest.mark.slow),
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
        assert (record["allowed_ms"] is None) == (record["backend"] == "in-process")
        low, high = record["overhead_range_ms"]
        assert low <= record["overhead_ms"] <= high
        assert min(record["page_us"]) > 0 and max(record["page_us"]) < 1e5
        assert f"│ {record['backend']} " in done.stdout
    assert "Memory: to read a page again takes " in done.stdout and "Memory: " in results.read_text()
    rows = [line.split(" | ") for line in results.read_text().splitlines() if line.startswith("| ")]
    assert [row[2] for row in rows] == ["backend", "---", *backends.split(",")]
    assert {len(row) for row in rows} == {len(COLUMNS)}


PAGE = (1e-8, 9e-6)


def test_a_batch_is_held_against_the_bare_search_just_before_it() -> None:
    ends = [0.014, 0.021, 0.033]
    timed = Timed([0.010, 0.020, 0.030], [[(0.0, end) for end in ends]], 1, None, 2, 1.0)
    found = retrieval_record(1000, "flat", "ray-1", timed, PAGE)
    assert (found.bare_median_ms, found.median_ms, found.overhead_ms, found.overhead_percent) == (20, 21, 3, 15)
    assert (found.allowed_ms, found.within, found.overhead_range_ms) == (5, True, (1, 4))
    assert found.page_us == (0.01, 9)


@pytest.mark.parametrize(
    ("overhead", "spread", "within"), [(0.004, 0.0, True), (0.006, 0.0, False), (0.006, 0.1, None), (0.004, 0.1, None)]
)
def test_what_is_allowed_is_left_open_where_batches_differ_too_much(
    overhead: float, spread: float, within: bool | None
) -> None:
    random = np.random.default_rng(0)
    ends = (0.2 + overhead + spread * random.standard_normal(100)).tolist()
    timed = Timed([0.2] * 100, [[(0.0, end) for end in ends]], 1, None, 2, 1.0)
    assert retrieval_record(1000, "flat", "ray-1", timed, PAGE).within is within
    assert retrieval_record(1000, "flat", "in-process", timed, PAGE).within is None


@pytest.mark.parametrize("count", [30, 100, 300])
def test_the_range_of_a_median_holds_the_true_one_nineteen_times_in_twenty(count: int) -> None:
    """Of a skewed distribution, whose median is known."""
    samples = np.random.default_rng(0).exponential(size=(2000, count))
    held = [low <= math.log(2) <= high for low, high in map(median_range, samples.tolist())]
    assert 0.94 < np.mean(held) < 0.98


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
