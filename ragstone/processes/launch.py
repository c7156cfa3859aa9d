"""Starting the processes of a run on this machine, through torch's elastic launcher."""

from __future__ import annotations

import logging
import os
import signal
import socket
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NoReturn, TypeVar

from ragstone.errors import LOST, InputError, LostError
from ragstone.interrupt import stop_like_interrupt

S = TypeVar("S")
R = TypeVar("R")

LOOPBACK = "127.0.0.1"
GO_ON = "--resume goes on from the last checkpoint"
"""What a user does about a run that has lost a process."""
RUN_ID = "ragstone"
"""Of a run that `launch` has started, in the environment of its processes."""
SECONDS_TO_STOP = 15
"""That a process has to clean up before it is killed, when the run is stopped from outside. Where a process has failed,
torch gives the others half a minute."""
LOGGERS = ("torch.distributed.elastic", "torch.multiprocessing")
SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT)


def launch(work: Callable[[S], R], settings: S, processes: int, port: int | None = None) -> R:
    """Run `work(settings)` in so many processes, and return what it returned in the first.

    Args:
        work: a function that a new process can import.
        settings: what it gets; it travels by pickle.
        processes: how many; the environment of each says which it is (see environment.place).
        port: at which they meet on this machine; a free one where None.

    Raises:
        InputError: `port` is in use.
        InputError, LostError: what `work` raised first in any of them, or one of them was killed. The others are
            stopped.
    """
    from torch.distributed.elastic.multiprocessing import DefaultLogsSpecs
    from torch.distributed.elastic.multiprocessing.api import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.launcher.api import LaunchConfig, elastic_launch

    if port is not None:
        _refuse_used_port(port)
    with tempfile.TemporaryDirectory(prefix="ragstone-processes-") as folder, _quiet(), _environment(processes):
        config = LaunchConfig(
            min_nodes=1,
            max_nodes=1,
            nproc_per_node=processes,
            run_id=RUN_ID,
            # c10d finds a port itself; static takes the one that it is told.
            rdzv_backend="c10d" if port is None else "static",
            rdzv_endpoint=f"{LOOPBACK}:{port or 0}",
            rdzv_configs={"rank": 0},
            local_addr=LOOPBACK,
            max_restarts=0,
            logs_specs=DefaultLogsSpecs(log_dir=folder),
            shutdown_timeout=SECONDS_TO_STOP,
        )
        try:
            results: dict[int, R] = elastic_launch(config, _work)(work, settings)
        except ChildFailedError as error:
            _tell(error.failures)
        except SignalException as error:
            raise KeyboardInterrupt from error
    return results[0]


def _work(work: Callable[[S], R], settings: S) -> R | None:
    """What a started process does. What goes wrong is written down for the one that started it."""
    from torch.distributed.elastic.multiprocessing.errors import record

    try:
        with stop_like_interrupt():
            return record(work)(settings)
    except (InputError, LostError):
        sys.exit(1)
    except KeyboardInterrupt:
        # torch takes a process that an interrupt ends for one that is done, and waits for its result for ever.
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        signal.raise_signal(signal.SIGTERM)
        raise


def end_lost(error: LostError) -> NoReturn:
    """End this process as it ends when it raises `error`, from a thread, while the main one may wait for ever."""
    if os.environ.get("TORCHELASTIC_RUN_ID") == RUN_ID:
        from torch.distributed.elastic.multiprocessing.errors import get_error_handler

        get_error_handler().record_exception(error)
    else:
        print(f"ragstone: {error}", file=sys.stderr, flush=True)
    os._exit(LOST)


def _tell(failures: Mapping[int, Any]) -> NoReturn:
    """Raise the failure that came first as the error that it was.

    One that was killed comes before those that then missed it.
    """
    ranked = sorted(failures.items(), key=lambda item: (item[1].exitcode >= 0, item[1].timestamp, item[0]))
    rank, failure = ranked[0]
    if failure.exitcode < 0:
        raise LostError(
            f"Rank {rank} (process {failure.pid}) was ended by {signal.Signals(-failure.exitcode).name}, and the "
            f"others were stopped; {GO_ON}."
        )
    if not Path(failure.error_file).is_file():
        raise LostError(
            f"Rank {rank} (process {failure.pid}) ended with exit code {failure.exitcode} without saying why, and "
            f"the others were stopped; {GO_ON}."
        )
    message = failure.error_file_data["message"]
    text = message["message"] if isinstance(message, dict) else str(message)
    for kind in (InputError, LostError):
        name, _, sentence = text.partition(": ")
        if name == kind.__name__:
            raise kind(sentence)
    trace = message.get("extraInfo", {}).get("py_callstack", "") if isinstance(message, dict) else ""
    raise RuntimeError(f"Rank {rank} failed: {text}\n{trace}")


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep the launcher from logging what is raised anyway, and give its signal handlers back."""
    loggers = [
        logger
        for name, logger in logging.root.manager.loggerDict.items()
        if name.startswith(LOGGERS) and isinstance(logger, logging.Logger)
    ]
    levels = [logger.level for logger in loggers]
    handlers = {number: signal.getsignal(number) for number in SIGNALS}
    for logger in loggers:
        logger.setLevel(logging.CRITICAL + 1)
    try:
        yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
        for number, handler in handlers.items():
            if signal.getsignal(number) != handler:
                signal.signal(number, handler)


@contextmanager
def _environment(processes: int) -> Iterator[None]:
    """What the started processes shall find in their environment, where the user has not said otherwise.

    Each takes its share of the cores. Where that is one core, threads that wait do not spin: the only ones are those
    of a search that one process does for all, and then the others are to go on. torch's C++ code reports a lost
    connection by a stack; what was lost is told by this package.
    """
    threads = max(1, len(os.sched_getaffinity(0)) // processes)
    wanted = {"OMP_NUM_THREADS": str(threads), "TORCH_CPP_LOG_LEVEL": "ERROR"}
    if threads == 1:
        wanted["OMP_WAIT_POLICY"] = "PASSIVE"
    new = {name: value for name, value in wanted.items() if name not in os.environ}
    os.environ.update(new)
    try:
        yield
    finally:
        for name in new:
            del os.environ[name]


def _refuse_used_port(port: int) -> None:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((LOOPBACK, port))
        except OSError as error:
            raise InputError(
                f"--distributed_port {port} cannot be used ({error.strerror}); give another, or leave it out."
            ) from error
