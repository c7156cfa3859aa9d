"""Two hosts on one machine: network namespaces with a cable between them, and what runs on them.

For scripts that show what happens between hosts. Needs root and the program ip of iproute2.
"""

from __future__ import annotations

import os
import shlex
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from ragstone.errors import InputError

ADDRESSES = ("10.77.0.1", "10.77.0.2")
LINK = "eth0"
"""What each host calls its end of the cable."""
SECONDS_TO_WAIT = 300
"""For a process that ends by itself; then something hangs."""


class UnexpectedError(Exception):
    """Something is not as it should be; the message says what."""


class Process:
    """A command that runs on a host. Its lines are kept, with the time at which each came."""

    def __init__(self, words: Sequence[str], shown: str) -> None:
        """`shown` is how people write the command."""
        self.lines: list[tuple[float, str]] = []
        self.ended = 0.0
        self._shown = shown
        self._process = subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        self._reader = threading.Thread(target=self._read)
        self._reader.start()

    def runs(self) -> bool:
        return self._process.poll() is None

    def wait(self, deadline: float) -> int:
        """Its exit code.

        Raises:
            UnexpectedError: it still runs at the time `deadline`.
        """
        try:
            code = self._process.wait(max(0.0, deadline - time.monotonic()))
        except subprocess.TimeoutExpired:
            raise self.unexpected("should have ended by now, and still runs") from None
        self._reader.join(SECONDS_TO_WAIT)
        return code

    def succeed(self) -> None:
        """Wait until it ends.

        Raises:
            UnexpectedError: with an exit code other than 0, or not at all.
        """
        code = self.wait(time.monotonic() + SECONDS_TO_WAIT)
        if code != 0:
            raise self.unexpected(f"ended with exit code {code}")

    def unexpected(self, what: str) -> UnexpectedError:
        """The error that this process did `what`, with the last of what it said."""
        said = "\n".join(f"    {line}" for _, line in self.lines[-40:])
        return UnexpectedError(f"{self._shown}\n  {what}. It said last:\n{said}")

    def _read(self) -> None:
        assert self._process.stdout is not None
        with self._process.stdout as lines:
            for line in lines:
                self.lines.append((time.monotonic(), line.rstrip()))
        self._process.wait()
        self.ended = time.monotonic()


@dataclass(frozen=True)
class Host:
    """A network namespace."""

    number: int
    address: str

    @property
    def namespace(self) -> str:
        return f"two-hosts-{os.getpid()}-{self.number}"

    def start(self, program: str, *words: str) -> Process:
        """Start a program that is installed beside this Python."""
        shown = self._show(program, *words)
        path = Path(sys.executable).with_name(program)
        return Process(["ip", "netns", "exec", self.namespace, str(path), *words], shown)

    def set_link(self, state: str) -> None:
        """Plug this host's end of the cable in ("up") or pull it out ("down")."""
        command = ["link", "set", LINK, state]
        self._show("ip", *command)
        ip("-n", self.namespace, *command)

    def processes(self) -> list[int]:
        """Of all that runs on it."""
        return [int(word) for word in ip("netns", "pids", self.namespace).split()]

    def workers(self) -> list[str]:
        """What the retrieval workers on it call themselves."""
        titles = []
        for number in self.processes():
            with suppress(OSError):
                titles.append(Path(f"/proc/{number}/cmdline").read_text(errors="replace").strip("\0 "))
        return [title for title in titles if title.startswith("ray::RetrievalWorker")]

    def remove(self) -> None:
        """End all that runs on it, and it."""
        while left := self.processes():
            for number in left:
                with suppress(ProcessLookupError):
                    os.kill(number, signal.SIGKILL)
            time.sleep(0.1)
        ip("netns", "delete", self.namespace)

    def _show(self, *words: str) -> str:
        shown = f"host {self.number}$ {shlex.join(words)}"
        print(shown, flush=True)
        return shown


def ip(*words: str) -> str:
    """What the program ip prints.

    Raises:
        InputError: it refuses.
    """
    done = subprocess.run(["ip", *words], capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise InputError(f"This machine lets nobody make hosts: ip {shlex.join(words)}: {done.stderr.strip()}")
    return done.stdout


@contextmanager
def two_hosts() -> Iterator[tuple[Host, Host]]:
    """Two hosts with a cable between them; they and all that runs on them end with the with-block."""
    one, two = (Host(number, address) for number, address in enumerate(ADDRESSES, 1))
    try:
        for host in (one, two):
            ip("netns", "add", host.namespace)
        other_end = ["peer", "name", LINK, "netns", two.namespace]
        ip("-n", one.namespace, "link", "add", LINK, "type", "veth", *other_end)
        for host in (one, two):
            ip("-n", host.namespace, "address", "add", f"{host.address}/24", "dev", LINK)
            for device in ("lo", LINK):
                ip("-n", host.namespace, "link", "set", device, "up")
        yield one, two
    finally:
        # Nobody interrupts the cleaning up.
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            signal.signal(number, signal.SIG_IGN)
        there = ip("netns", "list").split()
        for host in (one, two):
            if host.namespace in there:
                host.remove()
