"""Embedding a corpus on all hosts of a Ray cluster: its parts are divided among workers by Ray Data.

Vectors never come through the process that asks. A worker reads a part from the folder that all hosts share, and writes
it there with its vectors; Ray starts lost workers anew and repeats what they had not finished.
"""

from __future__ import annotations

import logging
import math
import os
import socket
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from ragstone.arithmetic import Precision
from ragstone.encoders.precision import best_device, compute_dtype
from ragstone.encoders.text_encoder import TextEncoder
from ragstone.errors import InputError, LostError, one_line
from ragstone.knowledge.build import BuildPlan
from ragstone.knowledge.corpus import Corpus
from ragstone.knowledge.embedding import embed_groups
from ragstone.knowledge.parts import Part, Parts, open_parts
from ragstone.progress import progress_bar

PASSAGES_PER_PART = 8192
"""At most: what is done again when a worker is lost."""
FEWEST_PER_PART = 512
"""A part is at least so large, or batches of passages of like length cannot be filled."""
PARTS_PER_WORKER = 4
"""At least, so that none waits long for the others at the end."""
PASSAGES_AT_ONCE = 2048
"""Passages that a worker sorts by length together; the next ones are tokenised meanwhile."""
CORES_PER_WORKER = 8
"""At most: a batch offers little more to share among threads."""


@dataclass(frozen=True)
class WorkerLayout:
    """How many workers a cluster has room for, and what each of them gets."""

    workers: int
    cpus: int
    gpus: int = 0

    @classmethod
    def of(cls, resources: Sequence[dict[str, float]]) -> WorkerLayout:
        """A worker for each GPU, or, where there are none, workers for all cores.

        Args:
            resources: of each host, as Ray counts them: {"CPU": ..., "GPU": ...}.

        Raises:
            InputError: there is neither.
        """
        hosts = [(int(host.get("CPU", 0)), int(host.get("GPU", 0))) for host in resources]
        per_gpu = [cpus // gpus for cpus, gpus in hosts if gpus]
        if per_gpu:
            return cls(sum(gpus for _, gpus in hosts), min(CORES_PER_WORKER, *per_gpu), gpus=1)
        cores = [cpus for cpus, _ in hosts if cpus]
        if not cores:
            raise InputError("The Ray cluster offers no CPU and no GPU; start its hosts with ray start --num-cpus.")
        # The smallest host is divided evenly; a larger one takes more workers of that size.
        cpus = min(cores) // math.ceil(min(cores) / CORES_PER_WORKER)
        return cls(sum(number // cpus for number in cores), cpus)


@dataclass(frozen=True)
class RayEmbedding:
    """Embeds on the cluster that this process is connected to; an Embed of the build."""

    parts_folder: Path
    """Where the parts are until the source is there; all hosts must reach it."""
    threads: int | None = None
    """CPU threads of a worker, at most; all that Ray gives it where not given."""
    passages_per_part: int | None = None
    """Where not given, 8192, or fewer if that would leave workers without work."""

    def __call__(self, corpus: Corpus, encoder: TextEncoder, plan: BuildPlan, folder: Path) -> None:
        """Embed the corpus into a store in `folder`.

        Raises:
            InputError: the documents changed, the encoder cannot be used, or a worker cannot reach the parts' folder.
            LostError: Ray has given up.
        """
        import ray

        layout = WorkerLayout.of([node["Resources"] for node in ray.nodes() if node["Alive"]])
        if not layout.gpus:
            # A worker would refuse it too, but not before it has started.
            compute_dtype(torch.device("cpu"), plan.precision)
        size = self.passages_per_part or _passages_per_part(corpus.passages, layout.workers)
        parts = open_parts(self.parts_folder.absolute(), corpus, encoder, plan.precision, size)
        self._embed(parts, encoder, plan, layout, corpus.passages)
        unfinished = parts.unfinished()
        if unfinished:
            raise InputError(
                f"{unfinished[0].finished_path} was written by another host, but is not seen on this one; give an "
                "--output_dir on a file system that all hosts of the cluster share."
            )
        parts.make_store(folder, encoder.dimension)

    def _embed(self, parts: Parts, encoder: TextEncoder, plan: BuildPlan, layout: WorkerLayout, passages: int) -> None:
        import ray
        from ray.data import ActorPoolStrategy

        unfinished = parts.unfinished()
        with _quiet_ray_data(), progress_bar("Embedding", passages) as bar:
            bar.advance(passages - parts.passages_in(unfinished))
            if not unfinished:
                return
            numbers = [{"part": part.number} for part in unfinished]
            done = ray.data.from_items(numbers, override_num_blocks=len(numbers)).map_batches(
                EmbedPart,
                fn_constructor_kwargs={
                    "folder": parts.folder,
                    "encoder": ray.put(encoder.cpu()),
                    "batch_size": plan.batch_size,
                    "precision": plan.precision,
                    "threads": self.threads,
                },
                batch_size=1,
                num_cpus=layout.cpus,
                num_gpus=layout.gpus,
                compute=ActorPoolStrategy(size=min(layout.workers, len(numbers))),
            )
            for row in _rows(done):
                if row["refusal"]:
                    raise InputError(row["refusal"])
                bar.advance(parts.passages_in([Part(parts.folder, row["part"])]))


class EmbedPart:
    """Becomes the workers, as Ray Data's actors: gives a part its vectors."""

    def __init__(self, folder: Path, encoder: Any, batch_size: int, precision: Precision, threads: int | None) -> None:
        """Make ready.

        Args:
            folder: where the parts are.
            encoder: Ray's reference to a TextEncoder.
            batch_size: passages that are embedded at once.
            precision: arithmetic of the encoder.
            threads: CPU threads to use at most; None is as many as Ray gave this process.
        """
        import ray

        if threads is not None:
            torch.set_num_threads(min(threads, torch.get_num_threads()))
        # Tokenizers would take all cores of the host, whoever else works there.
        os.environ.setdefault("RAYON_NUM_THREADS", str(torch.get_num_threads()))
        self._folder = folder
        # A worker that was given no GPU sees those that Ray was not told of.
        device = best_device() if ray.get_gpu_ids() else torch.device("cpu")
        whole: TextEncoder = ray.get(encoder).to(device)
        self._encoder = whole.in_precision(precision)
        self._batch_size = batch_size

    def __call__(self, batch: dict[str, Any]) -> dict[str, list[Any]]:
        """Finish the parts whose numbers are given; what stands in the way is told, since Ray would retry an error."""
        numbers = [int(number) for number in batch["part"]]
        return {"part": numbers, "refusal": [self._finish(Part(self._folder, number)) for number in numbers]}

    def _finish(self, part: Part) -> str:
        """Give a part its vectors, unless another worker did; the reason why not, empty where it has them."""
        if part.finished_path.exists():
            return ""
        try:
            groups = part.groups(PASSAGES_AT_ONCE)
            embedded = embed_groups(groups, self._encoder, batch_size=self._batch_size)
            part.finish(embedded, self._encoder.dimension)
        except InputError as error:
            return str(error)
        except OSError as error:
            return (
                f"The Ray worker on {socket.gethostname()} cannot work in {part.folder} ({error.strerror or error}); "
                "give an --output_dir on a file system that all hosts of the cluster share."
            )
        return ""


def _passages_per_part(passages: int, workers: int) -> int:
    """As many as may be, while there is work for all workers."""
    return max(FEWEST_PER_PART, min(PASSAGES_PER_PART, math.ceil(passages / (PARTS_PER_WORKER * workers))))


def _rows(dataset: Any) -> Iterator[dict[str, Any]]:
    """The rows of Ray's dataset as they are made.

    Raises:
        LostError: Ray cannot make more of them.
    """
    from ray.exceptions import RayTaskError

    try:
        yield from dataset.iter_rows()
    except RayTaskError:
        # A fault in the program: what Ray tells of it shows where.
        raise
    except Exception as error:  # Ray Data has several classes for a cluster that is not able to go on
        reason = one_line(error)
        raise LostError(f"The Ray cluster cannot go on ({reason}); see ray status, and start again.") from error


@contextmanager
def _quiet_ray_data() -> Iterator[None]:
    """Without Ray Data's own bars and its account of what it does, which is in its log file, too."""
    from ray.data import DataContext

    context = DataContext.get_current().copy()
    context.enable_progress_bars = False
    context.print_on_execution_start = False
    consoles = [
        handler for handler in logging.getLogger("ray.data").handlers if isinstance(handler, logging.StreamHandler)
    ]
    levels = [handler.level for handler in consoles]
    for handler in consoles:
        handler.setLevel(logging.CRITICAL)
    try:
        with DataContext.current(context):
            yield
    finally:
        for handler, level in zip(consoles, levels, strict=True):
            handler.setLevel(level)
