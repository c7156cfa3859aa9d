"""A process group on torch.distributed: joined, used for messages, watched, left.

Tensors of gradients go through the default group (gloo on CPUs, NCCL on GPUs). Messages go through a gloo group of
their own, so that they neither need a GPU nor meet gradients on their way.
"""

from __future__ import annotations

import json
import os
import socket
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager, nullcontext
from datetime import timedelta
from ipaddress import ip_address
from typing import Any, NoReturn

import torch
import torch.distributed as dist
from torch.distributed.distributed_c10d import PrefixStore
from torch.distributed.rendezvous import rendezvous

from ragstone.errors import InputError, LostError, refused_by_system
from ragstone.processes.environment import Place, place
from ragstone.processes.exchange import Bytes, Post, gather_bytes
from ragstone.processes.guard import Guard
from ragstone.processes.launch import GO_ON, end_lost
from ragstone.processes.processes import OneProcess, Processes
from ragstone.processes.watch import Watch

NCCL_MARGIN = timedelta(seconds=30)
"""That NCCL waits longer than messages do: it ends a process that waits, whose guard can say what it waits for."""
LOOPBACK_NAMES = ("localhost", "127.0.0.1", "::1")
"""Who gives one of these means this host alone."""


class ProcessGroup:
    """See Processes. Get one from `joined`."""

    def __init__(self, where: Place, group: Any, watch: Watch, timeout: float) -> None:
        """`group` is a gloo group of all processes, whose messages take at most `timeout` seconds."""
        self.place = where
        self.timeout = timeout
        self._group = group
        self._post = Post(group)
        self._watch = watch

    def share(self, value: Any) -> Any:
        """See Processes.share."""
        return self.gather(value if self.place.is_first else None)[0]

    def gather(self, value: Any) -> list[Any]:
        """See Processes.gather."""
        self._watch.advance()
        return [json.loads(message) for message in gather_bytes(json.dumps(value).encode(), self._group)]

    def on_first(self, action: Callable[[], Any]) -> Any:
        """See Processes.on_first."""
        outcome: dict[str, Any] = {}
        if self.place.is_first:
            try:
                outcome = {"result": action()}
            except InputError as error:
                outcome = {"refused": str(error)}
            except OSError as error:
                sentence = refused_by_system(error)
                if sentence is None:
                    raise
                outcome = {"refused": sentence}
        outcome = self.share(outcome)
        if "refused" in outcome:
            raise InputError(outcome["refused"])
        return outcome["result"]

    def advance(self) -> None:
        """This process has come to its next exchange of `send` and `receive`; to be called equally often by all."""
        self._watch.advance()

    def send(self, message: Bytes, to: int) -> Callable[[], None]:
        """Begin to send bytes to the process of a rank, which must `receive` them; see exchange.Post."""
        return self._post.send(message, to)

    def receive(self, source: int) -> Bytes:
        """Receive the bytes that the process of a rank sends."""
        return self._post.receive(source)

    def explain(self, error: RuntimeError) -> NoReturn:
        """Raise what an error in a message means: which process is missing.

        Raises:
            LostError: one is.
            RuntimeError: `error` itself, when it has nothing to do with messages.
        """
        if not (isinstance(error, dist.DistError) or "gloo" in str(error).lower()):
            raise error
        missing = self._watch.missing()
        if missing is not None and not [rank for rank in missing if rank != self.place.rank]:
            reason = str(error).splitlines()[0]
            raise LostError(f"{self._in_vain}, though every rank is alive ({reason}); {GO_ON}.") from error
        raise self.lost(missing) from error

    def lost(self, missing: Sequence[int] | None) -> LostError:
        """The error that this process waits for ranks in vain; None: that it cannot reach the first one's host."""
        if missing is None:
            return LostError(f"{self._in_vain}: rank 0's host {_master()} cannot be reached; {GO_ON}.")
        others = [rank for rank in missing if rank != self.place.rank]
        named = f"rank {others[0]} is" if len(others) == 1 else f"ranks {', '.join(map(str, others))} are"
        return LostError(f"{self._in_vain}: {named} gone or stopped; {GO_ON}.")

    @property
    def _in_vain(self) -> str:
        return f"Rank {self.place.rank} waited in vain (time-out {self.timeout:g} s)"

    def guard(self) -> Guard:
        """What ends this process, from a thread, when another has stopped and this one may wait for a GPU."""
        return Guard(self._watch, self.timeout, lambda ranks: end_lost(self.lost(ranks)))

    def close(self) -> None:
        """Stop watching."""
        self._watch.close()


@contextmanager
def joined(device: torch.device, timeout: float) -> Iterator[Processes]:
    """The processes that this one was started together with, for the length of a with-block.

    Args:
        device: what this process computes on.
        timeout: seconds that a message may take.

    Raises:
        InputError: the first process's address cannot be used; from within the with-block, what the system refuses.
        LostError: from within the with-block, for an error in a message, which names the missing process.
    """
    where = place()
    if where.size == 1:
        yield OneProcess()
        return
    _speak_where_the_master_is(where)
    limit = timedelta(seconds=timeout)
    try:
        store, rank, size = next(rendezvous("env://", timeout=limit))
        backend, patience = ("nccl", limit + NCCL_MARGIN) if device.type == "cuda" else ("gloo", limit)
        dist.init_process_group(backend, store=PrefixStore("run", store), rank=rank, world_size=size, timeout=patience)
        messages = dist.new_group(backend="gloo", timeout=limit)
    except RuntimeError as error:
        raise LostError(
            f"Rank {where.rank} of {where.size} could not meet the others at {_master()} within {timeout:g} s "
            f"({str(error).splitlines()[0]}); start all of them together, on hosts that reach that address."
        ) from error
    watch = Watch(PrefixStore("watch", store.clone()), rank, size)
    group = ProcessGroup(where, messages, watch, timeout)
    # A thread that is in C++ when Python ends takes the process down with SIGABRT, so none is left behind. The process
    # group's own stay where a message may still be on its way: they would be waited for until the time-out.
    refused: InputError | None = None
    try:
        with closing(group.guard()) if backend == "nccl" else nullcontext():
            yield group
        watch.leave()
    except RuntimeError as error:
        group.explain(error)
    except InputError as error:
        refused = error
    except OSError as error:
        sentence = refused_by_system(error)
        if sentence is None:
            raise
        refused = InputError(sentence)
    finally:
        group.close()
    dist.destroy_process_group()
    if refused is not None:
        raise refused


def _speak_where_the_master_is(where: Place) -> None:
    """Let gloo and NCCL use the network interface that leads to the first process, which the kernel's routes tell.

    Left alone, gloo takes whatever address the host's name has, on many machines one that no other host reaches. What
    the user set stays.

    Raises:
        InputError: no way leads there, or none that other hosts have too.
    """
    import psutil

    if "GLOO_SOCKET_IFNAME" in os.environ:
        return
    host, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
    try:
        family, kind, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_DGRAM)[0]
        with socket.socket(family, kind) as probe:
            # Nothing is sent: a datagram socket that is connected only has its route chosen.
            probe.connect(address)
            own = probe.getsockname()[0]
    except (OSError, UnicodeError) as error:
        reason = "no host can be called so" if isinstance(error, UnicodeError) else error.strerror
        raise InputError(
            f"The first process's address {host}:{port} leads nowhere from this host ({reason}); give --master_addr "
            "an address of the first host that all others reach."
        ) from error
    if where.local_size < where.size and host not in LOOPBACK_NAMES and ip_address(address[0]).is_loopback:
        raise InputError(
            f"The first process's address {host} is {address[0]} on this host, which no other host reaches; give "
            "--master_addr the number of its address in the network, or set GLOO_SOCKET_IFNAME and NCCL_SOCKET_IFNAME."
        )
    for name, addresses in psutil.net_if_addrs().items():
        if any(found.address == own for found in addresses):
            os.environ["GLOO_SOCKET_IFNAME"] = name
            if name != "lo":
                # Without the sign, it is what a name begins with.
                os.environ.setdefault("NCCL_SOCKET_IFNAME", f"={name}")
            return


def _master() -> str:
    return f"{os.environ.get('MASTER_ADDR')}:{os.environ.get('MASTER_PORT')}"
