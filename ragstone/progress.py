"""Progress bars with rate and time left on a terminal, silence anywhere else.

Where nobody knows how long something takes there is a spinner, with the time since it began.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator, Sized
from contextlib import contextmanager
from contextvars import ContextVar
from typing import TypeVar

from rich.console import Console, RenderableType
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    SpinnerColumn,
    Task,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.text import Text

T = TypeVar("T")

_silent: ContextVar[bool] = ContextVar("silent", default=False)
_display: ContextVar[Progress | None] = ContextVar("display", default=None)
"""The display that bars are drawn on now: a terminal has room for one."""


class RateColumn(ProgressColumn):
    """Units done per second."""

    def render(self, task: Task) -> Text:
        speed = task.finished_speed or task.speed
        return Text("" if speed is None else f"{speed:,.1f}/s", style="progress.data.speed")


class EitherColumn(ProgressColumn):
    """One column for what has a total, another for what has none."""

    def __init__(self, total: ProgressColumn, no_total: ProgressColumn) -> None:
        super().__init__()
        self._total = total
        self._no_total = no_total

    def render(self, task: Task) -> RenderableType:
        return (self._no_total if task.total is None else self._total).render(task)


class ProgressBar:
    """A bar that is moved by hand. Get one from `progress_bar`."""

    def __init__(self, progress: Progress | None, description: str, total: float | None) -> None:
        self._progress = progress
        self._silent = _silent.get()
        self._task = None if progress is None else progress.add_task(description, total=total, note="")

    def advance(self, amount: float = 1) -> None:
        """Move the bar on by `amount` units."""
        if self._progress is not None and self._task is not None:
            self._progress.advance(self._task, amount)

    def move_to(self, amount: float) -> None:
        """Move the bar to `amount` units from its beginning."""
        if self._progress is not None and self._task is not None:
            self._progress.update(self._task, completed=amount)

    def note(self, text: str) -> None:
        """Show `text` (a loss, a score) behind the bar."""
        if self._progress is not None and self._task is not None:
            self._progress.update(self._task, note=text)

    def remove(self) -> None:
        """Take the bar off the display."""
        if self._progress is not None and self._task is not None:
            self._progress.remove_task(self._task)

    def print(self, text: str) -> None:
        """Print a line that stays, above the bar; without a terminal, on standard error as it is."""
        if self._progress is not None:
            self._progress.console.print(text, markup=False, highlight=False)
        elif not self._silent:
            print(text, file=sys.stderr, flush=True)


@contextmanager
def silence() -> Iterator[None]:
    """No bars, and no lines of theirs, within a with-block: for all but one of several processes that do the same."""
    token = _silent.set(True)
    try:
        yield
    finally:
        _silent.reset(token)


@contextmanager
def progress_bar(description: str, total: float | None = None, *, stays: bool = True) -> Iterator[ProgressBar]:
    """A progress bar on standard error for the length of a with-block; nothing when that is not a terminal.

    Within another one's with-block it stands below that one, and goes when it is done.

    Args:
        description: what is being done.
        total: units to do; a spinner turns where None.
        stays: whether it is left to be seen when it is done.
    """
    outer = _display.get()
    if outer is not None:
        bar = ProgressBar(outer, description, total)
        try:
            yield bar
        finally:
            bar.remove()
        return
    console = Console(stderr=True)
    if _silent.get() or not console.is_terminal:
        yield ProgressBar(None, description, total)
        return
    columns = (
        TextColumn("{task.description}"),
        EitherColumn(BarColumn(), SpinnerColumn()),
        EitherColumn(MofNCompleteColumn(), TextColumn("")),
        RateColumn(),
        EitherColumn(TimeRemainingColumn(), TimeElapsedColumn()),
        TextColumn("{task.fields[note]}"),
    )
    # What is printed meanwhile stands above the bar; but what goes to a file or a pipe stays on its way.
    with Progress(*columns, console=console, transient=not stays, redirect_stdout=sys.stdout.isatty()) as progress:
        _display.set(progress)
        try:
            yield ProgressBar(progress, description, total)
        finally:
            _display.set(None)


@contextmanager
def activity(description: str) -> Iterator[None]:
    """What is being done, and since when, for the length of a with-block that nobody can tell the end of."""
    with progress_bar(description, stays=False):
        yield


def track(items: Iterable[T], description: str, total: float | None = None) -> Iterator[T]:
    """Yield `items`, moving a progress bar by one for each."""
    if total is None and isinstance(items, Sized):
        total = len(items)
    with progress_bar(description, total) as bar:
        for item in items:
            yield item
            bar.advance()
