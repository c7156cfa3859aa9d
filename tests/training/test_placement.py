"""Plans of runs, on this machine: what they say, and what is refused before anything is loaded."""

from __future__ import annotations

import json
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch

from ragstone.errors import InputError
from ragstone.index.exact_range import bytes_on_device
from ragstone.memory import Memory
from ragstone.model.lora import LoraSettings
from ragstone.processes.environment import Place
from ragstone.retrieval.choice import RetrievalSettings
from ragstone.retrieval.method import MethodRequest
from ragstone.training import placement
from ragstone.training.footprint import WeightUse, footprint
from ragstone.training.hardware import free_on_gpus
from ragstone.training.placement import PlacementRequest, plan_placement
from tests.retrieval.conftest import UNMAPPED_DIMENSION, UNMAPPED_ROWS, write_published, write_unmapped_source

NO_GPU = not torch.cuda.is_available()
needs_no_gpu = pytest.mark.skipif(not NO_GPU, reason="this machine has a GPU")


@pytest.fixture
def usual(checkpoint_folder: Path, source_folder: Path) -> dict[str, Any]:
    retrieval = RetrievalSettings()
    return {"gpus": 0, "retrieval": retrieval, "model": str(checkpoint_folder), "passages_path": str(source_folder)}


def plan(usual: dict[str, Any], where: Place | None = None, **more: Any) -> Any:
    return plan_placement(PlacementRequest(**{**usual, **more}), where or Place())


def test_one_process(usual: dict[str, Any], checkpoint_folder: Path) -> None:
    placement = plan(usual)
    assert (placement.processes, placement.starts) == (1, False)
    assert placement.lines[:2] == [
        "processes  1, on the CPU",
        "retrieval  in the process itself; index memory-mapped",
    ]
    size = (checkpoint_folder / "model.safetensors").stat().st_size
    shown = float(placement.lines[2].split()[1])
    assert shown == pytest.approx(4 * size / 2**20, abs=0.1)


def test_several_processes(usual: dict[str, Any]) -> None:
    placement = plan(usual, num_processes=3)
    assert (placement.processes, placement.starts) == (3, True)
    assert placement.lines[:2] == [
        "processes  3, each on the CPU; gradients by gloo",
        "retrieval  rank 0 searches for all; index memory-mapped there alone",
    ]


def test_processes_that_are_there_already(usual: dict[str, Any]) -> None:
    placement = plan(usual, Place(rank=5, size=8, local_rank=1, local_size=4))
    assert (placement.processes, placement.starts) == (8, False)
    assert placement.lines[0] == "processes  8, 4 of them on this host, each on the CPU; gradients by gloo"
    with pytest.raises(InputError, match="--num_processes 2: 4 processes were started on this host; leave"):
        plan(usual, Place(rank=5, size=8, local_rank=1, local_size=4), num_processes=2)


def test_ray_workers(usual: dict[str, Any]) -> None:
    retrieval = RetrievalSettings("ray", "10.0.0.1:6379", workers=2, parts=3)
    assert plan(usual, retrieval=retrieval).lines[1] == (
        "retrieval  6 Ray workers for 3 parts of the source, index memory-mapped in each; the cluster at 10.0.0.1:6379"
    )


def test_a_closed_book_retrieves_nothing(usual: dict[str, Any], models_folder: Path) -> None:
    """Whether a flag says so or what stands in the folder."""
    for more in ({"retrieval": None}, {"model": str(models_folder / "generator")}):
        assert [line.split()[0] for line in plan(usual, **more).lines] == ["processes", "memory"]


@pytest.mark.parametrize(
    ("flag", "retrieval"),
    [
        ("distributed_retriever", RetrievalSettings("ray")),
        ("ray_address", RetrievalSettings(ray_address="local")),
        ("num_retrieval_workers", RetrievalSettings(workers=2)),
        ("index_shards", RetrievalSettings(parts=2)),
        ("index_device", RetrievalSettings(device="cuda")),
    ],
)
def test_a_closed_book_is_not_asked_to_search(
    usual: dict[str, Any], models_folder: Path, flag: str, retrieval: RetrievalSettings
) -> None:
    with pytest.raises(InputError, match=f"^A closed-book bart retrieves nothing; omit --{flag}\\.$"):
        plan(usual, model=str(models_folder / "generator"), retrieval=retrieval)


def test_a_checkpoint_that_names_its_source(usual: dict[str, Any], source_folder: Path, tmp_path: Path) -> None:
    index = source_folder / "my_knowledge_dataset_hnsw_index.faiss"
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "rag", "index_path": str(index)}))
    found = plan(usual, model=str(tmp_path), passages_path=None).lines[2]
    assert found.endswith(f"index {index.stat().st_size / 2**20:.1f} MiB")


@pytest.fixture
def published(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """See write_published."""
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    return write_published(tmp_path)


def test_an_index_by_name(usual: dict[str, Any], published: Path, tmp_path: Path) -> None:
    """By flag, or by a checkpoint's config as transformers wrote it; not where a source of its own is given."""
    named = {"passages_path": None, "index_name": "compressed"}
    assert plan(usual, **named, model="someone/model").lines[2].endswith("unknown; index 3.0 MiB")
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "rag", "index_name": "compressed"}))
    by_config = {"model": str(tmp_path), "passages_path": None}
    assert plan(usual, **by_config).lines[2].endswith("index 3.0 MiB")
    assert "3.0 MiB" not in plan(usual, **{**by_config, "passages_path": usual["passages_path"]}).lines[2]
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "rag", "use_dummy_dataset": True}))
    assert "index" not in plan(usual, **by_config).lines[2]
    for given in ({"passages_path": usual["passages_path"]}, {"index_name": "compressed"}):
        assert "index" in plan(usual, **{**by_config, **given}).lines[2]
    for unknown in ({"use_dummy_dataset": True}, {"index_name": "exact"}, {"index_name": "legacy"}):
        assert "index" not in plan(usual, **{**by_config, **unknown}).lines[2]


def test_a_model_on_the_hub_has_no_size_yet(usual: dict[str, Any]) -> None:
    assert "model not here yet, so its size is unknown" in plan(usual, model="someone/model").lines[2]


def test_a_model_that_does_not_fit_is_refused(usual: dict[str, Any], tmp_path: Path) -> None:
    """A file of 40 GB, all of it a hole, as an old checkpoint: 200 GB of weights, averages and two of each gradient."""
    with (tmp_path / "pytorch_model.bin").open("wb") as file:
        file.truncate(40 * 10**9)
    with pytest.raises(InputError, match=r"takes at least 372\.5 GiB of memory, and .* are free; take fewer processes"):
        plan(usual, model=str(tmp_path), num_processes=2)


@pytest.mark.parametrize(
    ("use", "bytes_a_weight"),
    [
        (WeightUse(), 16),
        (WeightUse(trains=False), 4),
        (WeightUse(adafactor=True), 8),
        (WeightUse(lora=LoraSettings(r=1, alpha=1), torch_dtype="bfloat16"), 2),
    ],
    ids=str,
)
def test_what_is_not_held_is_not_asked_for(
    usual: dict[str, Any],
    use: WeightUse,
    bytes_a_weight: int,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """On a machine with just as much free memory as there must be; a byte less is refused."""
    with (tmp_path / "pytorch_model.bin").open("wb") as file:
        file.truncate(40 * 10**9)
    free = 10**10 * bytes_a_weight
    for there in (free, free - 1):
        monkeypatch.setattr(placement, "memory", lambda there=there: Memory(total=2**60, available=there))
        if there == free:
            assert "activations besides" in plan(usual, model=str(tmp_path), use=use).lines[-1]
        else:
            with pytest.raises(InputError, match=r"takes at least .* are free"):
                plan(usual, model=str(tmp_path), use=use)


def test_vectors_that_cannot_be_mapped_must_fit_for_exact_search(
    usual: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Once for each worker of a part; where those are on other hosts, they look for themselves."""
    source = str(write_unmapped_source(tmp_path / "nq"))
    held = 2 * 4 * UNMAPPED_ROWS * UNMAPPED_DIMENSION
    wanted = {"model": "someone/model", "passages_path": source}
    here, elsewhere = (RetrievalSettings("ray", address, workers=2, parts=3) for address in ("local", "10.0.0.1:6379"))
    monkeypatch.setattr(placement, "memory", lambda: Memory(total=2**60, available=held))
    assert plan(usual, **wanted, retrieval=here).lines[-1].endswith(f"vectors {held / 2**20:.1f} MiB in memory")
    monkeypatch.setattr(placement, "memory", lambda: Memory(total=2**60, available=held - 1))
    with pytest.raises(InputError, match=f"^The vectors of {source} cannot be mapped: .* are free beside the model"):
        plan(usual, **wanted, retrieval=here)
    for retrieval in (elsewhere, RetrievalSettings("ray", "local", workers=2)):
        assert plan(usual, **wanted, retrieval=retrieval)
    # The index has them.
    assert "vectors" not in plan(usual, model="someone/model", retrieval=here).lines[-1]


@needs_no_gpu
def test_half_precision_that_a_cpu_imitates_is_warned_of(usual: dict[str, Any]) -> None:
    """bfloat16 only where the processor has no instructions for it."""
    assert plan(usual, precision="no").warning is None
    assert "no instructions for half precision, so --fp16 takes many" in str(plan(usual, precision="fp16").warning)
    imitated = "avx512_bf16" not in Path("/proc/cpuinfo").read_text(encoding="utf-8")
    assert ("so --bf16 takes many times" in str(plan(usual, precision="bf16").warning)) == imitated


def test_gpus_are_asked_by_a_process_of_its_own() -> None:
    assert len(free_on_gpus(range(torch.cuda.device_count()), asks_apart=True)) == torch.cuda.device_count()


@needs_no_gpu
@pytest.mark.parametrize(
    ("more", "message"),
    [
        ({"gpus": 2}, "--gpus 2: this machine has 0 GPUs"),
        ({"retrieval": RetrievalSettings(device="cuda")}, "--index_device cuda: this machine has no GPU"),
    ],
)
def test_gpus_that_are_not_there(usual: dict[str, Any], more: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        plan(usual, **more)


SECOND_HOST = Place(rank=4, size=8, local_rank=0, local_size=4)


@needs_no_gpu
def test_a_gpu_is_asked_for_where_vectors_are_searched(usual: dict[str, Any], worded_source: Path) -> None:
    """By the first process, or by all of them where words are searched too."""
    cuda = RetrievalSettings(device="cuda")
    assert plan(usual, SECOND_HOST, retrieval=cuda)
    by_both = {"passages_path": str(worded_source), "method": MethodRequest("hybrid")}
    for where, more in ((Place(0, 8, 0, 4), {}), (SECOND_HOST, by_both)):
        with pytest.raises(InputError, match=r"^--index_device cuda: this machine has no GPU"):
            plan(usual, where, retrieval=cuda, **more)


def test_memory_is_asked_for_where_vectors_are_held(
    usual: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By the first process alone, on a machine that is made to say that it has a GPU, and little memory."""
    source = str(write_unmapped_source(tmp_path / "nq"))
    held = 4 * UNMAPPED_ROWS * UNMAPPED_DIMENSION
    more = {"model": "someone/model", "passages_path": source, "retrieval": RetrievalSettings(device="cuda")}
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(placement, "free_on_gpus", lambda numbers, asks_apart: [2**40])
    monkeypatch.setattr(placement, "memory", lambda: Memory(total=2**60, available=held - 1))
    assert "vectors" not in plan(usual, SECOND_HOST, **more).lines[-1]
    with pytest.raises(InputError, match=f"^The vectors of {source} cannot be mapped"):
        plan(usual, Place(0, 8, 0, 4), **more)


def test_who_needs_no_source_may_have_another_folder_there(usual: dict[str, Any], tmp_path: Path) -> None:
    """Under the name that the source has on the first host."""
    (tmp_path / "vectors.faiss").touch()
    more = {"passages_path": str(tmp_path), "index_path": str(tmp_path / "vectors.faiss")}
    exact = RetrievalSettings("ray", "10.0.0.1:6379", parts=2)
    for retrieval in (RetrievalSettings(), exact):
        planned = plan(usual, SECOND_HOST, retrieval=retrieval, **more)
        assert planned.lines[0].startswith("processes  8")
        with pytest.raises(InputError, match=str(tmp_path)):
            plan(usual, Place(0, 8, 0, 4), retrieval=retrieval, **more)


def test_a_gpu_must_hold_the_vectors_beside_the_model(
    usual: dict[str, Any], checkpoint_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever the index: exact search holds the vectors themselves. This machine is made to say that it has a GPU."""
    vectors, weights = bytes_on_device(6, 16), footprint(checkpoint_folder, WeightUse(trains=True), processes=1)
    assert weights is not None
    cuda = {**usual, "retrieval": RetrievalSettings(device="cuda"), "use": WeightUse(trains=True)}
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    for more, free, beside in (
        ({"gpus": 0}, vectors, ""),
        ({"gpus": 1}, vectors + weights, r" beside the model's \d.* MiB"),
    ):
        monkeypatch.setattr(torch.cuda, "mem_get_info", lambda _, free=free: (free, free))
        assert "MiB on the GPU" in plan(cuda, **more).lines[2]
        monkeypatch.setattr(torch.cuda, "mem_get_info", lambda _, free=free: (free - 1, free))
        with pytest.raises(InputError, match=rf"^--index_device cuda: the vectors take 0\.0 MiB{beside}, and the GPU"):
            plan(cuda, **more)


def test_a_gpu_must_hold_the_vectors_of_a_local_ray_worker(
    usual: dict[str, Any], checkpoint_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Workers take the GPUs from the first on, where the processes train that start them."""
    vectors, weights = bytes_on_device(3, 16), footprint(checkpoint_folder, WeightUse(trains=True), processes=1)
    assert weights is not None
    local, elsewhere = (
        {**usual, "retrieval": RetrievalSettings("ray", address, parts=2, device="cuda"), "gpus": 1}
        for address in ("local", "10.0.0.1:6379")
    )
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    free = vectors + weights
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda _: (free, free))
    assert "on the GPU of each Ray worker" in plan(local).lines[2]
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda _: (free - 1, free))
    with pytest.raises(InputError, match=r"^--index_device cuda: the vectors take 0\.0 MiB beside the model"):
        plan(local)
    assert "on the GPU of each Ray worker" in plan(elsewhere).lines[2]


@pytest.mark.parametrize(
    ("gpus", "where", "line", "starts", "looked_at"),
    [
        (None, Place(), "processes  1, on the GPU", False, [0]),
        (4, Place(), "processes  4, each on a GPU; gradients by NCCL", True, [0, 1, 2, 3]),
        (None, Place(6, 8, 2, 4), "processes  8, 4 of them on this host, each on a GPU; gradients by NCCL", False, [2]),
        (0, Place(6, 8, 2, 4), "processes  8, 4 of them on this host, each on the CPU; gradients by gloo", False, []),
    ],
)
def test_a_process_for_each_gpu(
    usual: dict[str, Any],
    monkeypatch: pytest.MonkeyPatch,
    gpus: int | None,
    where: Place,
    line: str,
    starts: bool,
    looked_at: list[int],
) -> None:
    """This machine is made to say that it has four. Whoever starts others takes nothing of their GPUs."""
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 4)
    asked: list[int] = []

    def free(numbers: Sequence[int], asks_apart: bool, of_last: int = 2**40) -> list[int]:
        assert asks_apart == starts
        asked.extend(numbers)
        return [2**40] * (len(numbers) - 1) + [of_last]

    monkeypatch.setattr(placement, "free_on_gpus", free)
    planned = plan(usual, where, gpus=gpus)
    assert (planned.lines[0], planned.starts) == (line, starts)
    assert asked == looked_at
    if looked_at:
        monkeypatch.setattr(placement, "free_on_gpus", partial(free, of_last=1))
        with pytest.raises(InputError, match=r"of memory on the GPU, and 0\.0 MiB are free"):
            plan(usual, where, gpus=gpus)
    for more, message in (
        ({"gpus": 5}, "--gpus 5: this machine has 4 GPUs that torch can use"),
        ({"gpus": None, "num_processes": 2}, "--num_processes 2 is for CPUs; give --gpus 0 with it"),
    ):
        with pytest.raises(InputError, match=message):
            plan(usual, **more)
