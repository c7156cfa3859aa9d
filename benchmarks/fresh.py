"""A fresh process that does something once: when its first line came, its peak of memory, what it printed.

    python -m benchmarks.fresh MODULE [ARGUMENT ...]

runs a module as `python -m` does, and says at the end on standard error how much memory it took at most.
"""

from __future__ import annotations

import atexit
import os
import runpy
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

PEAK = "peak MiB:"
SAMPLED_EVERY = 0.02
"""Seconds."""


@dataclass(frozen=True)
class Finished:
    """What a process did."""

    seconds: float
    """From its start to its first line on standard output."""
    mib: float
    """Of memory at its peak: a GPU's where it computed on one."""
    own_mib: float
    """Of the machine's memory at its peak without what is mapped of files, which the system can take back; sampled."""
    lines: list[str]
    """Of standard output."""


def run_fresh(module: str, arguments: Sequence[str], environment: Mapping[str, str] | None = None) -> Finished:
    """Run a module in a fresh process.

    Raises:
        RuntimeError: it failed; the message holds what it said.
    """
    command = [sys.executable, "-m", "benchmarks.fresh", module, *arguments]
    with tempfile.TemporaryFile("w+") as errors:
        began = time.perf_counter()
        with subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=errors, text=True, env={**os.environ, **(environment or {})}
        ) as process:
            assert process.stdout is not None
            with _Sampled(process) as sampled:
                first = process.stdout.readline()
                seconds = time.perf_counter() - began
                lines = [first, *process.stdout]
        errors.seek(0)
        said = errors.read()
    if process.returncode or PEAK not in said:
        raise RuntimeError(f"{' '.join(command)} ended with exit code {process.returncode}:\n{said[-3000:]}")
    mib = float(said.rsplit(PEAK, 1)[1].split()[0])
    return Finished(seconds, mib, sampled.mib, [line.rstrip("\n") for line in lines])


def peak_mib() -> float:
    """Of this process, or of its GPU where it computed on one."""
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_initialized():
        return float(torch.cuda.max_memory_allocated()) / 2**20
    # Not getrusage's figure, which a process takes over from the one that started it.
    return _status_mib("self", "VmHWM")


class _Sampled:
    """Looks at a process's own memory again and again within the with-block."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self.mib = 0.0
        self._process = process
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._look, daemon=True)

    def __enter__(self) -> _Sampled:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()

    def _look(self) -> None:
        while not self._over.wait(SAMPLED_EVERY):
            # A process that is over has no status, or one without memory.
            with suppress(OSError, StopIteration):
                self.mib = max(self.mib, _status_mib(str(self._process.pid), "RssAnon"))


def _status_mib(process: str, name: str) -> float:
    lines = Path(f"/proc/{process}/status").read_text(encoding="utf-8").splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(name)) / 1024


if __name__ == "__main__":
    atexit.register(lambda: print(PEAK, f"{peak_mib():.1f}", file=sys.stderr))
    del sys.argv[0]
    runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=True)
