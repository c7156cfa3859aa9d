"""A process of its own that does what it is asked for: several of them take turns, and share nothing."""

from __future__ import annotations

import multiprocessing
import os
from collections.abc import Callable, Iterator, Mapping
from multiprocessing.connection import Connection
from types import TracebackType
from typing import Any


class OwnProcess:
    """Does what it is asked for, until nobody asks any more. Use as a context manager."""

    def __init__(
        self, name: str, serve: Callable[..., None], *arguments: Any, environment: Mapping[str, str] | None = None
    ) -> None:
        """Start it.

        Args:
            name: of what it does, for errors.
            serve: a function that a new process can import; it gets a connection (see `asked`) and `arguments`.
            arguments: see above; they travel by pickle.
            environment: variables that it has besides this process's.
        """
        context = multiprocessing.get_context("spawn")
        self._name = name
        self._connection, there = context.Pipe()
        self._process = context.Process(target=serve, args=(there, *arguments), daemon=True)
        kept = dict(os.environ)
        os.environ.update(environment or {})
        try:
            self._process.start()
        finally:
            os.environ.clear()
            os.environ.update(kept)
        # So that a process that has died is seen to have closed its end.
        there.close()

    def __enter__(self) -> OwnProcess:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._connection.close()
        self._process.join()

    def ask(self, *what: Any) -> Any:
        """What it sends back.

        Raises:
            RuntimeError: the process has died; it has said why.
        """
        try:
            self._connection.send(what)
            return self._connection.recv()
        except (EOFError, ConnectionError) as error:
            asked_for = ", ".join(map(str, what))
            raise RuntimeError(f"The process of {self._name} ended at {asked_for}.") from error


def asked(connection: Connection) -> Iterator[tuple[Any, ...]]:
    """What a process is asked for, until nobody asks any more; each is to be answered over `connection`."""
    while True:
        try:
            what = connection.recv()
        except EOFError:
            return
        yield what
