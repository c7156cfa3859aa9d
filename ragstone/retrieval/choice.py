"""Which backend of retrieval a run's settings mean: the one spot where its name becomes one."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Literal

from ragstone.errors import InputError
from ragstone.processes.group import ProcessGroup
from ragstone.processes.processes import Processes
from ragstone.processes.ray_cluster import AUTO, LOCAL, Contact, RayCluster
from ragstone.retrieval.backend import InEveryProcess, InFirstProcess, RetrievalBackend
from ragstone.retrieval.location import IndexDevice

Backend = Literal["pytorch", "ray"]
"""In the words of the reference."""


@dataclass(frozen=True)
class RetrievalSettings:
    """As a user gives them."""

    backend: Backend = "pytorch"
    """pytorch: the first process searches, for the others too; ray: Ray workers do."""
    ray_address: str = AUTO
    workers: int = 1
    """Ray workers, of each part of the source."""
    parts: int = 1
    """Parts that the source is divided into, for Ray workers."""
    device: IndexDevice = "cpu"

    @property
    def exact(self) -> bool:
        """Whether the vectors themselves are searched, whatever the source's index."""
        return self.parts > 1 or self.device == "cuda"

    @property
    def on_this_host(self) -> bool:
        """Whether all of it certainly takes place on this host."""
        return self.backend == "pytorch" or self.ray_address == LOCAL


@contextmanager
def connected(settings: RetrievalSettings, processes: Processes) -> Iterator[None]:
    """What the backend of retrieval needs for as long as a run lasts: with Ray, a cluster that all are connected to.

    Raises:
        InputError: there is none that answers, or not with the GPUs that its workers are to have.
    """
    if settings.backend != "ray":
        yield
        return
    with ExitStack() as stack:
        # That no cluster answers is said by all processes, not by the first alone.
        contact = processes.on_first(lambda: _contact(settings, stack))
        if not processes.place.is_first:
            stack.enter_context(RayCluster(contact=contact))
        yield


def _contact(settings: RetrievalSettings, stack: ExitStack) -> Contact:
    """Of the cluster, connected until `stack` ends.

    Raises:
        InputError: none answers, or it has fewer GPUs than there are to be workers on GPUs, for which Ray would wait.
    """
    cluster = stack.enter_context(RayCluster(settings.ray_address))
    wanted = settings.workers * settings.parts
    if settings.device == "cuda" and wanted > cluster.gpus:
        workers = "the retrieval worker takes a GPU" if wanted == 1 else f"{wanted} retrieval workers take a GPU each"
        raise InputError(
            f"--index_device cuda: {workers}, and the Ray cluster at {cluster.address} has {cluster.gpus}; leave it "
            "out, or let hosts with GPUs join the cluster."
        )
    return cluster.contact


def retrieval_backend(settings: RetrievalSettings, processes: Processes, timeout: float) -> RetrievalBackend:
    """The backend that `settings` mean for a run of `processes`; `timeout` in seconds."""
    if settings.backend == "ray":
        from ragstone.retrieval.ray_retriever import InRayWorkers

        return InRayWorkers(processes, settings.workers, settings.parts, settings.device, timeout)
    if isinstance(processes, ProcessGroup):
        return InFirstProcess(processes, settings.device)
    return InEveryProcess(settings.device)
