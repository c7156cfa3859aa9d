"""Where a run's processes, models and index go: planned, checked and shown before anything is loaded."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import torch

from ragstone.arithmetic import MixedPrecision
from ragstone.encoders.precision import fast_bfloat16
from ragstone.errors import InputError
from ragstone.index.exact_range import bytes_on_device
from ragstone.knowledge.index_name import CUSTOM
from ragstone.knowledge.row_store import open_store
from ragstone.knowledge.source import INDEX_NAME, PASSAGES_NAME, Indexes, find_indexes, passages_folder
from ragstone.knowledge.wiki_dpr import PUBLISHED_INDEXES, find_wiki_dpr
from ragstone.memory import memory
from ragstone.processes.environment import Place
from ragstone.processes.ray_cluster import AUTO, LOCAL, refuse_without_ray
from ragstone.retrieval.choice import RetrievalSettings
from ragstone.retrieval.method import VECTORS_ALONE, Method, MethodRequest
from ragstone.retrieval.part import REMEDY, bytes_to_hold
from ragstone.training.footprint import WeightUse, footprint, read_config
from ragstone.training.hardware import free_on_gpus

GIB = 2**30
FLAGS = {
    "backend": "distributed_retriever",
    "ray_address": "ray_address",
    "workers": "num_retrieval_workers",
    "parts": "index_shards",
    "device": "index_device",
}
"""What RetrievalSettings are asked for by."""
SLOW = "Warning: this processor has no instructions for {what}, so --{flag} takes many times as long; leave it out."


@dataclass(frozen=True)
class PlacementRequest:
    """What a user asks for."""

    gpus: int | None = None
    num_processes: int | None = None
    precision: MixedPrecision = "no"
    retrieval: RetrievalSettings | None = None
    """None for a model that retrieves nothing."""
    model: str = ""
    """Folder or hub name."""
    passages_path: str | None = None
    index_path: str | None = None
    index_name: str | None = None
    use_dummy_dataset: bool = False
    method: MethodRequest = field(default_factory=MethodRequest)
    use: WeightUse = field(default_factory=WeightUse)
    """What is done with the model's weights."""


@dataclass(frozen=True)
class Placement:
    """What comes of it."""

    processes: int
    """All of them."""
    starts: bool
    """Whether they are still to be started, on this host."""
    lines: list[str]
    """The plan for people: a heading and what stands under it."""
    warning: str | None = None
    """What works, but is better done otherwise."""

    @property
    def text(self) -> str:
        """The plan as it is printed: of one process in one line."""
        if self.processes > 1:
            return "\n".join(self.lines)
        return " | ".join(" ".join(line.split()) for line in self.lines)


def plan_placement(request: PlacementRequest, place: Place) -> Placement:
    """Plan and check a run.

    Args:
        request: what is asked for.
        place: of this process; with a size above 1 the processes are there already.

    Raises:
        InputError: GPUs, Ray or memory that are not there, or numbers that contradict each other.
    """
    gpus = _gpus(request, place)
    here = place.local_size if place.size > 1 else max(1, gpus if gpus else request.num_processes or 1)
    processes = place.size if place.size > 1 else here
    device = "GPU" if gpus else "CPU"
    lines = [f"processes  {_processes(processes, here, device)}"]
    config = read_config(Path(request.model))
    retrieval, kind = request.retrieval, config.get("model_type", "rag")
    if retrieval is not None and kind != "rag":
        # A folder that holds no RAG checkpoint is a generator, which retrieves nothing.
        _refuse_retrieval(retrieval, kind)
        retrieval = None
    sizes, use = _IndexSizes(), request.use
    if retrieval is not None:
        passages, index_path = _source(request, config)
        method = _method(request, config, passages, place)
        # Who searches by words too opens the source in each process; else the first one does, or workers for it.
        copies = here if method.by_words else int(place.is_first)
        _check_retrieval(retrieval, method, opens=copies > 0)
        lines.append(f"retrieval  {_retrieval(retrieval, method, processes)}")
        # Who searches by words alone does not ask the question encoder.
        use = dataclasses.replace(use, encoder_rests=use.encoder_rests or not method.by_vectors)
        opened = passages if copies else None
        # Processes without GPUs of their own all use the first one.
        copies_on_gpu = min(copies, 1) if gpus else copies
        # Ray counts GPUs from the first on, as the processes that train do.
        on_gpus = retrieval.workers * retrieval.parts if retrieval.backend == "ray" else 1
        sizes = _IndexSizes(
            file=index_path.stat().st_size if index_path is not None and index_path.is_file() else None,
            held=_held_vectors(opened, index_path, retrieval) * copies,
            on_gpu=_vectors_on_gpu(opened, retrieval) * copies_on_gpu,
            on_gpus=on_gpus,
        )
    starts = place.size == 1 and here > 1
    numbers = [] if not gpus else list(range(here)) if starts else [place.local_rank]
    lines.append(f"memory     {_memory(request, use, here, processes, sizes, _GPUs(numbers, starts))}")
    warning = None if gpus else _slow_arithmetic(request.precision)
    return Placement(processes, starts, lines, warning)


def _slow_arithmetic(precision: MixedPrecision) -> str | None:
    """What is to be said of a precision that a CPU only imitates."""
    if precision == "fp16":
        return SLOW.format(what="half precision", flag=precision)
    if precision == "bf16" and not fast_bfloat16(torch.device("cpu")):
        return SLOW.format(what="bfloat16", flag=precision)
    return None


def _gpus(request: PlacementRequest, place: Place) -> int:
    """GPUs to use on this host: 0 is the CPU."""
    there = torch.cuda.device_count()
    gpus, processes = request.gpus, request.num_processes
    if gpus is not None and gpus > there:
        raise InputError(f"--gpus {gpus}: this machine has {there} GPUs that torch can use; give at most that many.")
    if place.size > 1:
        for name, value in (("gpus", gpus), ("num_processes", processes)):
            if value and value != place.local_size:
                raise InputError(
                    f"--{name} {value}: {place.local_size} processes were started on this host; leave --{name} out."
                )
        gpus = 0 if gpus == 0 or there == 0 else place.local_size
        if gpus > there:
            raise InputError(
                f"{gpus} processes were started on this host, which has {there} GPUs; start one for each GPU, or give "
                "--gpus 0."
            )
    elif gpus is None:
        if there and processes is not None:
            raise InputError(
                f"--num_processes {processes} is for CPUs; give --gpus 0 with it, or --gpus for a process per GPU."
            )
        gpus = min(1, there)
    elif gpus and processes not in (None, gpus):
        raise InputError(
            f"--num_processes {processes} is for CPUs, and --gpus {gpus} starts a process per GPU; leave one out."
        )
    return gpus


def _source(request: PlacementRequest, config: dict[str, Any]) -> tuple[Path | None, Path | None]:
    """Passages and index file, as far as they are known before the model is opened, which may be on this host or not.

    As model.source_choice chooses them; `config` is the checkpoint's, which may name a source.
    """
    if request.use_dummy_dataset:
        return None, None
    passages, index = request.passages_path, request.index_path
    if passages is None:
        index = index or config.get("index_path")
    if passages is None and request.index_name in (None, CUSTOM):
        passages = config.get("passages_path")
        if passages is None and config.get("use_dummy_dataset") and request.index_name is None:
            return None, None
    name = request.index_name or config.get("index_name")
    if passages is None and name in PUBLISHED_INDEXES:
        # One that was not downloaded is refused when it is opened.
        with suppress(InputError):
            folder, file = find_wiki_dpr(name)
            return folder, Path(index or file)
    if passages is not None and index is None:
        folder = Path(passages)
        index = str((folder if (folder / PASSAGES_NAME).is_dir() else folder.parent) / INDEX_NAME)
    return Path(passages) if passages else None, Path(index) if index else None


def _method(request: PlacementRequest, config: dict[str, Any], passages: Path | None, place: Place) -> Method:
    """By what passages will be found. What a source that is not on this host has is not known here, nor refused."""

    def resolve(indexes: Indexes) -> Method:
        recorded = (config.get("ragstone") or {}).get("retrieval")
        return request.method.resolve(recorded, indexes, str(passages or ""))

    unknown = Indexes(vectors=True, words=True)
    if passages is None or not passages.is_dir():
        return resolve(unknown)
    try:
        return resolve(find_indexes(passages))
    except InputError:
        if place.is_first:
            raise
        # Perhaps only the first process needs one; whoever else does is refused when it opens it.
        return resolve(unknown)


def _refuse_retrieval(retrieval: RetrievalSettings, kind: str) -> None:
    """Check that nothing is asked of a search that there is none of, with a generator alone of this model type.

    Raises:
        InputError: names the flag.
    """
    for name, flag in FLAGS.items():
        if getattr(retrieval, name) != getattr(RetrievalSettings(), name):
            raise InputError(f"A closed-book {kind} retrieves nothing; omit --{flag}.")


def _check_retrieval(retrieval: RetrievalSettings, method: Method, opens: bool) -> None:
    """Check what `retrieval` asks for; `opens` says whether a process of this host opens the source itself."""
    if retrieval.backend == "ray":
        if method.by_words:
            raise InputError(VECTORS_ALONE)
        refuse_without_ray("--distributed_retriever ray")
        return
    for name, value in (("num_retrieval_workers", retrieval.workers), ("index_shards", retrieval.parts)):
        if value > 1:
            raise InputError(f"--{name} {value} needs --distributed_retriever ray, whose workers it counts.")
    if retrieval.ray_address != AUTO:
        raise InputError(f"--ray_address {retrieval.ray_address} needs --distributed_retriever ray.")
    if retrieval.device == "cuda":
        if not method.by_vectors:
            raise InputError("--index_device cuda searches vectors, and --retriever bm25 searches words; leave it out.")
        if opens and not torch.cuda.is_available():
            raise InputError("--index_device cuda: this machine has no GPU that torch can use; leave it out.")


def _processes(processes: int, here: int, device: str) -> str:
    if processes == 1:
        return f"1, on the {device}"
    meaning = "gradients by NCCL" if device == "GPU" else "gradients by gloo"
    elsewhere = "" if here == processes else f", {here} of them on this host"
    return f"{processes}{elsewhere}, each on {'a GPU' if device == 'GPU' else 'the CPU'}; {meaning}"


def _retrieval(retrieval: RetrievalSettings, method: Method, processes: int) -> str:
    where = "on a GPU" if retrieval.device == "cuda" else "memory-mapped"
    if retrieval.backend == "ray":
        count = retrieval.workers * retrieval.parts
        divided = f" for {retrieval.parts} parts of the source" if retrieval.parts > 1 else ""
        meant = {AUTO: "the running cluster, or a new local one", LOCAL: "a new local cluster"}
        cluster = meant.get(retrieval.ray_address, f"the cluster at {retrieval.ray_address}")
        return f"{count} Ray worker{'s' if count > 1 else ''}{divided}, index {where} in each; {cluster}"
    if method.by_words:
        searched = {"bm25": "words (BM25)", "hybrid": "words (BM25) and vectors"}[method.retriever]
        return f"in each process itself, by {searched}; indexes memory-mapped"
    if processes > 1:
        return f"rank 0 searches for all; index {where} there alone"
    return f"in the process itself; index {where}"


@dataclass(frozen=True)
class _IndexSizes:
    """Bytes that the index takes."""

    file: int | None = None
    """Of its file, if that is on this host."""
    held: int = 0
    """Of vectors that are read into memory."""
    on_gpu: int = 0
    """Of vectors that are put on a GPU."""
    on_gpus: int = 1
    """How many GPUs have so many, the first ones of this host where they are here."""


@dataclass(frozen=True)
class _GPUs:
    """Those that the plan is about."""

    numbers: Sequence[int]
    """Of those that train: this process's own, or those of the processes that it starts. None of them: a CPU does."""
    asks_apart: bool
    """Whether another process asks them; see free_on_gpus."""

    @cached_property
    def free(self) -> list[int]:
        """Bytes on each of them; where a CPU trains, on the first, which an index may be on."""
        return free_on_gpus(self.numbers or [0], self.asks_apart)


def _memory(
    request: PlacementRequest, use: WeightUse, here: int, processes: int, index: _IndexSizes, gpus: _GPUs
) -> str:
    """What a process takes, and the index beside it.

    Args:
        request: what is asked for.
        use: what is done with the weights.
        here: processes on this host.
        processes: all of them.
        index: what it takes.
        gpus: where there are any.
    """
    needed = footprint(Path(request.model), use, processes)
    parts, left = [], memory().available
    if needed is None:
        parts.append("model not here yet, so its size is unknown")
    else:
        kept = "weights, gradients and optimiser" if use.trains else "weights"
        each = " a process" if processes > 1 else ""
        parts.append(f"{_size(needed)}{each} for {kept}, activations besides")
        # Weights that nobody changes may stay where their file is mapped, which all processes share.
        copies = here if use.trains or use.quantization else 1
        total, free, what = needed * copies, left, "memory"
        if gpus.numbers:
            total, free, what = needed, min(gpus.free), "memory on the GPU"
        if total > free:
            doing = "Training" if use.trains else "Answering with"
            adapters = "" if use.lora or not use.trains or request.retrieval is None else "adapters (--lora_r), "
            raise InputError(
                f"{doing} {request.model} takes at least {_size(total)} of {what}, and {_size(free)} are free; take "
                f"fewer processes, {adapters}a smaller model or a larger machine."
            )
        left -= 0 if gpus.numbers else total
    if index.on_gpu and request.retrieval is not None:
        beside = (needed or 0) if gpus.numbers else 0
        # Those of a Ray cluster may be on other hosts, and a local one without GPUs is refused when it has started.
        looks = request.retrieval.on_this_host and torch.cuda.is_available()
        if looks and index.on_gpu + beside > (free := min(gpus.free[: index.on_gpus])):
            others = f" beside the model's {_size(beside)}" if beside else ""
            raise InputError(
                f"--index_device cuda: the vectors take {_size(index.on_gpu)}{others}, and the GPU has {_size(free)} "
                "free; leave it out, or divide them among Ray workers with --index_shards."
            )
        whose = " of each Ray worker" if request.retrieval.backend == "ray" else ""
        parts.append(f"vectors {_size(index.on_gpu)} on the GPU{whose}")
    if index.file is not None:
        parts.append(f"index {_size(index.file)}")
    if index.held:
        parts.append(f"vectors {_size(index.held)} in memory")
        # Workers of a cluster that is there already may be on other hosts, and look for themselves.
        if index.held > left and request.retrieval is not None and request.retrieval.on_this_host:
            source = request.passages_path or "the source"
            raise InputError(
                f"The vectors of {source} cannot be mapped: exact search holds {_size(index.held)} of them in memory, "
                f"and {_size(max(0, left))} are free beside the model; {REMEDY}."
            )
    return "; ".join(parts)


def _held_vectors(passages: Path | None, index: Path | None, retrieval: RetrievalSettings) -> int:
    """Bytes of the vectors that exact search by `retrieval` reads into memory, if the source is on this host."""
    if not retrieval.exact or passages is None or index is None or not (index.is_file() and passages.is_dir()):
        return 0
    return retrieval.workers * bytes_to_hold(open_store(passages_folder(passages)), index)


def _vectors_on_gpu(passages: Path | None, retrieval: RetrievalSettings) -> int:
    """Bytes that exact search of a part of the source takes of a GPU, if the source is on this host."""
    if retrieval.device != "cuda" or passages is None or not passages.is_dir():
        return 0
    store = open_store(passages_folder(passages))
    return bytes_on_device(math.ceil(len(store) / retrieval.parts), store.dimension)


def _size(size: int) -> str:
    return f"{size / GIB:.1f} GiB" if size >= GIB / 10 else f"{size / 2**20:.1f} MiB"
