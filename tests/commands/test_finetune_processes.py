"""ragstone finetune in several processes: the run that one process makes, whoever starts them and whoever searches."""

from __future__ import annotations

import dataclasses
import json
import os
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch
import yaml
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch.distributed import TCPStore

from ragstone.__main__ import main
from ragstone.commands.finetune import FinetuneSettings
from ragstone.commands.finetune_plan import run_plan
from ragstone.errors import InputError
from ragstone.processes.launch import launch
from ragstone.settings import parse_settings
from ragstone.training.run import run
from tests.commands.conftest import refused

PAGE = Path(__file__).parents[2] / "docs" / "many-gpus-many-machines.md"
TWO = {"gpus": 0, "num_processes": 2}


@pytest.fixture(scope="module")
def base(pairs_folder: Path, checkpoint_folder: Path, source_folder: Path) -> dict[str, Any]:
    """50 steps of the same nine questions in batches of six and three, validated on three after every fifth."""
    return {
        "data_dir": pairs_folder,
        "n_train": 9,
        "model_name_or_path": checkpoint_folder,
        "passages_path": source_folder,
        "num_train_epochs": 25,
        "val_check_interval": 5,
        "n_val": 3,
        "n_docs": 3,
        "learning_rate": 0.003,
        # A weight that the loss does not depend on has a gradient of rounding alone, which AdamW would scale up.
        "adam_epsilon": 1e-3,
        "num_beams": 1,
        "val_max_target_length": 8,
        "test_max_target_length": 8,
        "do_train": True,
        "do_predict": True,
        "gpus": 0,
    }


def words(flags: dict[str, Any]) -> list[str]:
    pairs = [[f"--{name}"] if value is True else [f"--{name}", str(value)] for name, value in flags.items()]
    return ["finetune", *(word for pair in pairs for word in pair)]


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory, base: dict[str, Any]) -> Path:
    """What one process makes of it."""
    folder = tmp_path_factory.mktemp("alone") / "run"
    assert main(words({**base, "train_batch_size": 6, "output_dir": folder})) == 0
    return folder


def metrics(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "metrics.json").read_text(encoding="utf-8"))


def step_losses(folder: Path) -> dict[int, float]:
    """The loss of each step as TensorBoard has it; the last one of a step that was done again."""
    files = (folder / "tensorboard").rglob("events.out.tfevents.*")
    found: dict[int, float] = {}
    for file in sorted(files, key=lambda file: file.stat().st_mtime_ns):
        events = EventAccumulator(str(file))
        events.Reload()
        if "train/loss_per_token" in events.Tags()["scalars"]:
            found |= {event.step: event.value for event in events.Scalars("train/loss_per_token")}
    return found


def assert_the_same_run(folder: Path, other: Path) -> None:
    """Losses of every step to 1e-4, equal scores, equal choice of checkpoints, equal predictions."""
    losses = step_losses(folder)
    assert losses == pytest.approx(step_losses(other), rel=1e-4)
    one, two = metrics(folder), metrics(other)
    assert len(one["val"]) == len(two["val"])
    for a, b in zip(one["val"], two["val"], strict=True):
        for name in ("step_count", "val_avg_em", "val_avg_f1", "distinct_passages", "learning_rate"):
            assert a[name] == b[name], (a["step_count"], name)
        assert a["loss_per_token"] == pytest.approx(b["loss_per_token"], rel=1e-4), a["step_count"]
        for name in ("prior_entropy", "posterior_entropy"):
            assert a[name] == pytest.approx(b[name], rel=1e-3, abs=1e-6), (a["step_count"], name)
    assert one["test"] == two["test"]
    for name in ("best", "last"):
        assert (folder / name).readlink() == (other / name).readlink()
    predictions = [(path / "test_predictions.txt").read_text(encoding="utf-8") for path in (folder, other)]
    assert predictions[0] == predictions[1]


@pytest.mark.parametrize(
    "retriever", ["pytorch", pytest.param("ray", marks=[pytest.mark.slow, pytest.mark.xdist_group("ray")])]
)
def test_two_processes_make_the_run_of_one(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], base: dict[str, Any], alone: Path, retriever: str
) -> None:
    """The last batch of an epoch has two questions for one process and one for the other; nor do the validated divide,
    of which each process has several batches, one filled up.

    One of two Ray workers is killed meanwhile.
    """
    flags = {**base, **TWO, "train_batch_size": 3, "eval_batch_size": 1}
    flags |= {"output_dir": tmp_path / "run", "distributed_retriever": retriever}
    if retriever == "pytorch":
        assert main(words(flags)) == 0
    else:
        flags |= {"ray_address": "local", "num_retrieval_workers": 2}
        with ThreadPoolExecutor() as pool:
            killed_after = pool.submit(_kill_a_worker, tmp_path / "run")
            assert main(words(flags)) == 0
            assert killed_after.result() < 10
    assert len(metrics(alone)["val"]) == 10
    assert metrics(alone)["val"][-1]["val_avg_em"] > 0
    assert list(step_losses(alone)) == list(range(1, 51))
    assert_the_same_run(tmp_path / "run", alone)
    out, err = capfd.readouterr()
    assert "processes  2, each on the CPU; gradients by gloo" in err
    assert out.count("output ") == 1
    assert err.count("step 50/50") == 1
    settings = yaml.safe_load((tmp_path / "run" / "settings.yaml").read_text(encoding="utf-8"))
    assert (settings["num_processes"], settings["distributed_retriever"]) == (2, retriever)


def on_gpus(number: int, *, marks: tuple[pytest.MarkDecorator, ...] = (), **flags: Any) -> Any:
    """Flags of a test that needs so many GPUs."""
    missing = pytest.mark.skipif(torch.cuda.device_count() < number, reason=f"no {number} GPU(s) here")
    return pytest.param(flags, marks=[missing, *marks])


@pytest.mark.parametrize(
    "flags",
    [
        on_gpus(1, gpus=1, train_batch_size=6),
        on_gpus(2, gpus=2, train_batch_size=3),
        on_gpus(1, gpus=1, train_batch_size=6, index_device="cuda"),
        on_gpus(
            1,
            marks=(pytest.mark.xdist_group("ray"),),
            train_batch_size=6,
            distributed_retriever="ray",
            ray_address="local",
            num_retrieval_workers=1,
            index_device="cuda",
        ),
    ],
)
def test_gpus_make_the_run_of_the_cpu(
    tmp_path: Path, base: dict[str, Any], alone: Path, capfd: pytest.CaptureFixture[str], flags: dict[str, Any]
) -> None:
    """The model on one GPU, or on two, whose gradients meet by NCCL; the index on one, here or in a Ray worker."""
    capfd.readouterr()
    assert main(words({**base, **flags, "output_dir": tmp_path / "run"})) == 0
    assert_the_same_run(tmp_path / "run", alone)
    if flags.get("gpus") == 2:
        assert "gradients by NCCL" in capfd.readouterr().err


@pytest.mark.slow
@pytest.mark.parametrize("retriever", ["bm25", "hybrid"])
def test_every_process_searches_by_words(
    tmp_path: Path, base: dict[str, Any], worded_source: Path, capfd: pytest.CaptureFixture[str], retriever: str
) -> None:
    """The losses of one process; with bm25 the question encoder has no gradient to wait for.

    Each step is of two batches, whose second has a question for the first process and none for the other.
    """
    steps = {"n_train": 7, "gradient_accumulation_steps": 2, "num_train_epochs": 5, "val_check_interval": 4}
    flags = {**base, **steps, "passages_path": worded_source, "retriever": retriever}
    assert main(words({**flags, "train_batch_size": 6, "output_dir": tmp_path / "one"})) == 0
    capfd.readouterr()
    assert main(words({**flags, **TWO, "train_batch_size": 3, "output_dir": tmp_path / "two"})) == 0
    assert "retrieval  in each process itself, by words (BM25)" in capfd.readouterr().err
    assert list(step_losses(tmp_path / "one")) == list(range(1, 6))
    assert_the_same_run(tmp_path / "two", tmp_path / "one")


@pytest.mark.slow
@pytest.mark.parametrize("machines", [1, 2])
@pytest.mark.parametrize("launcher", ["torchrun", "accelerate"])
def test_under_other_launchers(tmp_path: Path, base: dict[str, Any], alone: Path, launcher: str, machines: int) -> None:
    """Two processes that are one machine's, or that two machines start, each with its own rank."""
    command = ["-m", "ragstone", *words({**base, "train_batch_size": 3, "output_dir": tmp_path / "run"})]
    port = _free_port()
    with ThreadPoolExecutor() as pool:
        started = [
            pool.submit(
                subprocess.run,
                [sys.executable, *_launcher(launcher, machines, rank, port), *command],
                capture_output=True,
                text=True,
                check=False,
                env=_environment(),
            )
            for rank in range(machines)
        ]
    found = [machine.result() for machine in started]
    for machine in found:
        assert machine.returncode == 0, machine.stderr
    assert_the_same_run(tmp_path / "run", alone)
    # Two processes, but one speaks.
    assert [machine.stdout.count("output ") for machine in found] == [1, 0][:machines]
    assert [machine.stderr.count("step 50/50") for machine in found] == [1, 0][:machines]


@pytest.mark.slow
def test_accelerate_launch_is_not_let_divide_the_model(tmp_path: Path, base: dict[str, Any]) -> None:
    command = ["-m", "ragstone", *words({**base, "output_dir": tmp_path / "run"})]
    launcher = ["--use_fsdp" if word == "--multi_gpu" else word for word in _launcher("accelerate", 1, 0, _free_port())]
    found = subprocess.run(
        [sys.executable, *launcher, *command], capture_output=True, text=True, check=False, env=_environment()
    )
    assert found.returncode != 0
    assert found.stderr.count("accelerate launch was told to train with FSDP (ACCELERATE_USE_FSDP), but each") == 1
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
def test_under_accelerate_launch_without_retrieval(tmp_path: Path, base: dict[str, Any], models_folder: Path) -> None:
    """And early stopping, on which all agree: no score is better than the first."""
    flags = {
        **{name: value for name, value in base.items() if name not in ("passages_path", "n_docs")},
        "model_name_or_path": models_folder / "generator",
        "learning_rate": 1e-9,
        "val_check_interval": 0.5,
        "early_stopping_patience": 2,
    }
    one = {**flags, "train_batch_size": 6, "output_dir": tmp_path / "one"}
    assert main(words(one)) == 0
    two = {**flags, "train_batch_size": 3, "output_dir": tmp_path / "two"}
    found = subprocess.run(
        [sys.executable, *_launcher("accelerate", 1, 0, _free_port()), "-m", "ragstone", *words(two)],
        capture_output=True,
        text=True,
        check=False,
        env=_environment(),
    )
    assert found.returncode == 0, found.stderr
    for name in ("one", "two"):
        assert [record["step_count"] for record in metrics(tmp_path / name)["val"]] == [1, 2, 3]
        assert (tmp_path / name / "best").readlink() == Path("checkpoint1")
    losses = [[record["loss_per_token"] for record in metrics(tmp_path / name)["val"]] for name in ("one", "two")]
    assert losses[0] == pytest.approx(losses[1], rel=1e-4)


@pytest.mark.slow
def test_a_run_goes_on_after_a_killed_rank_and_after_a_signal_in_another_number_of_processes(
    tmp_path: Path, base: dict[str, Any], alone: Path
) -> None:
    """Two processes, one of which is killed; two that go on and are stopped; one that ends as if it had been alone."""
    folder = tmp_path / "run"
    two = {**base, **TWO, "train_batch_size": 3, "distributed_timeout": 60, "output_dir": folder}
    with _started_in_background(two) as running:
        _wait_until((folder / "last").exists)
        ranks = _ranks(running)
        ranks[1].send_signal(signal.SIGKILL)
        _, err = running.communicate(timeout=120)
    assert running.returncode == 3
    _assert_killed_rank_is_named(err)
    assert not ranks[0].is_running()
    before = len(metrics(folder)["val"])
    assert 1 <= before <= 7
    with _started_in_background({**two, "resume": True}) as running:
        _wait_until(lambda: len(metrics(folder)["val"]) >= before + 2)
        children = psutil.Process(running.pid).children(recursive=True)
        running.terminate()
        _, err = running.communicate(timeout=120)
    assert running.returncode == 130, err
    assert err.splitlines()[-1] == "ragstone finetune: interrupted"
    # The one that watches over multiprocessing's resources goes last, when nobody is left.
    _, left = psutil.wait_procs(children, timeout=10)
    assert left == []
    assert [path.name for path in folder.iterdir() if path.name.startswith(".")] == []
    assert before < len(metrics(folder)["val"]) < 10
    assert main(words({**base, "train_batch_size": 6, "output_dir": folder, "resume": True})) == 0
    assert_the_same_run(folder, alone)


@pytest.mark.slow
def test_each_rank_takes_up_its_random_numbers_where_it_left_them(tmp_path: Path, base: dict[str, Any]) -> None:
    """With dropout, a run that lost a rank and went on is the one without the loss."""
    flags = {**base, **TWO, "train_batch_size": 3, "dropout": 0.2, "distributed_timeout": 60}
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    assert main(words({**flags, "output_dir": whole})) == 0
    with _started_in_background({**flags, "output_dir": broken}) as running:
        _wait_until((broken / "last").exists)
        _ranks(running)[1].send_signal(signal.SIGKILL)
        _, err = running.communicate(timeout=120)
    _assert_killed_rank_is_named(err)
    assert main(words({**flags, "output_dir": broken, "resume": True})) == 0
    assert_the_same_run(broken, whole)


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ({"gpus": 64}, "--gpus 64: this machine has"),
        ({"gpus": 0, "num_processes": 0}, "--num_processes is 0"),
        ({"num_retrieval_workers": 2}, "--num_retrieval_workers 2 needs --distributed_retriever ray"),
        ({"index_shards": 3}, "--index_shards 3 needs --distributed_retriever ray"),
        ({"ray_address": "10.0.0.1:6379"}, "--ray_address 10.0.0.1:6379 needs --distributed_retriever ray"),
        ({"distributed_port": 70000}, "--distributed_port is 70000, but must be from 1 to 65535"),
        ({"distributed_timeout": 0}, "--distributed_timeout is 0.0, but must be from 1"),
        ({"model_name_or_path": "hole"}, "Training hole takes at least 5960.5 GiB of memory"),
        pytest.param(
            {**TWO, "passages_path": "nowhere"}, "There is no knowledge source nowhere", marks=pytest.mark.slow
        ),
        (
            {"distributed_retriever": "ray", "ray_address": "127.0.0.1:1"},
            "No Ray cluster answers at 127.0.0.1:1",
        ),
    ],
)
def test_what_is_refused(
    tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    base: dict[str, Any],
    flags: dict[str, Any],
    message: str,
) -> None:
    """Among them a model of 1.6 TB, all of it a hole in a file."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "hole").mkdir()
    with (tmp_path / "hole" / "pytorch_model.bin").open("wb") as file:
        file.truncate(16 * 10**11)
    wanted = words({**base, "output_dir": tmp_path / "run", **flags})
    if flags.get("num_processes") == 2 or "distributed_retriever" in flags:
        # The plan stands before what is then found.
        assert main(wanted) == 2
        assert message in capfd.readouterr().err.splitlines()[-1]
    else:
        assert message in refused(capfd, wanted)
    assert not (tmp_path / "run").exists()


def begin_unlike(task: tuple[dict[str, Any], dict[str, Any]]) -> None:
    """What each process does: the second one has other flags."""
    flags, others = task
    mine = flags if os.environ["RANK"] == "0" else flags | others
    run(run_plan(parse_settings(FinetuneSettings, words(mine)[1:], "ragstone", "")))


def assert_differences_are_told(flags: dict[str, Any], others: dict[str, Any], named: str) -> None:
    """As on several hosts; before anything that they do together depends on it."""
    with pytest.raises(InputError, match=f"^Rank 1 was started differently from rank 0: .*{named}"):
        launch(begin_unlike, (flags, others), 2)
    assert not Path(flags["output_dir"]).exists()


def test_processes_that_were_given_other_flags(tmp_path: Path, base: dict[str, Any]) -> None:
    others = {"learning_rate": 0.1, "distributed_retriever": "ray"}
    named = "--distributed_retriever .ray there, pytorch for"
    assert_differences_are_told({**base, "output_dir": tmp_path / "run"}, others, named)


@pytest.mark.slow
def test_processes_that_were_given_other_examples(tmp_path: Path, base: dict[str, Any], pairs_folder: Path) -> None:
    data = Path(shutil.copytree(pairs_folder, tmp_path / "data"))
    answers = (data / "test.target").read_text(encoding="utf-8").splitlines()
    (data / "test.target").write_text("\n".join(answers[::-1]) + "\n", encoding="utf-8")
    flags = {**base, "output_dir": tmp_path / "run"}
    assert_differences_are_told(flags, {"data_dir": data}, "the examples of test;")


def test_the_port_that_is_given_is_the_one_that_is_used(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], base: dict[str, Any]
) -> None:
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = other.getsockname()[1]
        flags = {**base, **TWO, "distributed_port": port, "output_dir": tmp_path / "run"}
        assert main(words(flags)) == 2
    assert f"--distributed_port {port} cannot be used" in capfd.readouterr().err.splitlines()[-1]
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
def test_under_torchrun_what_all_refuse_is_said_once(tmp_path: Path, base: dict[str, Any]) -> None:
    flags = {**base, "data_dir": "nowhere", "output_dir": tmp_path / "run"}
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    command = [*torchrun, "-m", "ragstone", *words(flags)]
    found = subprocess.run(command, capture_output=True, text=True, check=False, env=_environment())
    assert found.returncode != 0
    said = [line for line in found.stderr.splitlines() if line.startswith("ragstone finetune: ")]
    reason = "No such file or directory; give a readable file."
    assert said == [f"ragstone finetune: nowhere/train.source cannot be read: {reason}"]
    assert not (tmp_path / "run").exists()


def test_what_one_has_lost_is_said_without_asking_the_others(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], base: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Under torchrun, through whose store they are asked where all may refuse the same."""
    store = TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    place = {"RANK": "1", "WORLD_SIZE": "2", "LOCAL_RANK": "1", "LOCAL_WORLD_SIZE": "2"}
    meeting = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(store.port), "TORCHELASTIC_USE_AGENT_STORE": "True"}
    lost = words({**base, "output_dir": tmp_path / "run", "distributed_timeout": 1})
    asked, codes = [], []
    for attempt, arguments in enumerate((lost, ["finetune", "--n_docs", "few"])):
        for name, value in {**place, **meeting, "TORCHELASTIC_RESTART_COUNT": str(attempt)}.items():
            monkeypatch.setenv(name, value)
        store.set(f"refusal/{attempt}/first", "")
        store.set(f"refusal/{attempt}/done/0", "")
        codes.append(main(arguments))
        asked.append(store.check([f"refusal/{attempt}/done/1"]))
    assert "Rank 1 of 2 could not meet the others" in capfd.readouterr().err
    assert codes == [3, 2]
    assert asked == [False, True]


def test_a_missing_ray_is_said_before_anything_is_loaded(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], base: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    flags = {**base, "output_dir": tmp_path / "run", "distributed_retriever": "ray", "model_name_or_path": "nowhere"}
    assert "--distributed_retriever ray needs Ray: pip install 'ragstone[ray]'." in refused(capsys, words(flags))


@pytest.mark.slow
@pytest.mark.xdist_group("ray")
def test_the_documentations_commands(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    pairs_folder: Path,
    checkpoint_folder: Path,
    source_folder: Path,
) -> None:
    """Those for GPUs and for a second machine are parsed, all others run."""
    for name, folder in (("data", pairs_folder), ("rag", checkpoint_folder), ("knowledge", source_folder)):
        (tmp_path / name).symlink_to(folder)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("RAY_ADDRESS", "local")
    lines = [line.strip() for line in PAGE.read_text(encoding="utf-8").splitlines() if " ragstone finetune " in line]
    assert len(lines) == 8
    modules = {"torchrun": "torch.distributed.run", "accelerate launch": "accelerate.commands.launch"}
    for line in lines:
        before, _, flags = line.partition("ragstone finetune ")
        if "--gpus 0" not in line:
            parse_settings(FinetuneSettings, shlex.split(flags), "ragstone", "")
        elif not before:
            assert main(["finetune", *shlex.split(flags)]) == 0, line
        else:
            ((launcher, module),) = [found for found in modules.items() if before.startswith(found[0])]
            program = [sys.executable, "-m", module, *before.removeprefix(launcher).split(), "ragstone"]
            command = [*program, "finetune", *shlex.split(flags)]
            found = subprocess.run(command, capture_output=True, text=True, check=False, env=_environment())
            assert found.returncode == 0, (line, found.stderr)
            # Two processes, but one speaks.
            assert found.stdout.count("output ") == 1
            assert found.stderr.count("step 6/6") == 1
    losses = [
        [record["loss_per_token"] for record in metrics(tmp_path / name)["val"]]
        for name in ("run-cpu", "run-torchrun", "run-accelerate", "run-ray", "run-shards")
    ]
    for other in losses[1:]:
        assert other == pytest.approx(losses[0], rel=1e-4)


def test_the_documentations_flags() -> None:
    rows = [line for line in PAGE.read_text(encoding="utf-8").splitlines() if line.startswith("| `--")]
    named = {row.split("`")[1].removeprefix("--") for row in rows}
    assert len(named) == 9
    assert named <= {field.name for field in dataclasses.fields(FinetuneSettings)}


def _environment() -> dict[str, str]:
    """A Ray cluster that something else runs on this machine is left alone."""
    return {**os.environ, "OMP_NUM_THREADS": "1", "RAY_ADDRESS": "local"}


def _launcher(name: str, machines: int, rank: int, port: int) -> list[str]:
    """Arguments of Python for a launcher of two processes in all, on the machine of this rank."""
    if name == "torchrun":
        place = ["--nnodes", str(machines), "--node_rank", str(rank), "--nproc_per_node", str(2 // machines)]
        return ["-m", "torch.distributed.run", *place, "--master_addr", "127.0.0.1", "--master_port", str(port)]
    place = ["--num_processes", "2", "--num_machines", str(machines), "--machine_rank", str(rank)]
    place += ["--main_process_ip", "127.0.0.1", "--main_process_port", str(port)]
    settings = ["--mixed_precision", "no", "--dynamo_backend", "no", "--num_cpu_threads_per_process", "1"]
    return ["-m", "accelerate.commands.launch", "--multi_gpu", *place, *settings]


def _free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])


def _started_in_background(flags: dict[str, Any]) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "ragstone", *words(flags)]
    return subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=_environment())


def _ranks(running: subprocess.Popen[str]) -> list[psutil.Process]:
    """The two processes that a run has started, in their order."""
    children = psutil.Process(running.pid).children(recursive=True)
    ranks = [child for child in children if "spawn_main" in " ".join(child.cmdline())]
    assert len(ranks) == 2
    return sorted(ranks, key=lambda rank: rank.create_time())


def _kill_a_worker(folder: Path) -> int:
    """Kill a Ray worker of a run in `folder` once that has validated, and say after how many validations."""
    _wait_until((folder / "last").exists)
    children = psutil.Process().children(recursive=True)
    workers = [child for child in children if "RetrievalWorker" in " ".join(child.cmdline())]
    assert len(workers) == 2
    workers[0].kill()
    return len(metrics(folder)["val"])


def _assert_killed_rank_is_named(err: str) -> None:
    assert err.splitlines()[-1].startswith("ragstone finetune: Rank 1 (process ")
    assert "was ended by SIGKILL, and the others were stopped" in err


def _wait_until(condition: Callable[[], bool]) -> None:
    end = time.monotonic() + 120
    while not condition():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.02)
