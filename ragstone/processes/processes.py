"""The processes of a run, as the run sees them: one alone, or several that exchange messages.

Values that are exchanged are what JSON can hold.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol, TypeVar

from ragstone.processes.environment import Place

T = TypeVar("T")


class Processes(Protocol):
    """What a run needs of the others. Every method is called by all processes, in the same order."""

    @property
    def place(self) -> Place:
        """Where this process stands among them."""

    def share(self, value: Any) -> Any:
        """The first process's `value`."""

    def gather(self, value: Any) -> list[Any]:
        """Everybody's `value`, by rank."""

    def on_first(self, action: Callable[[], Any]) -> Any:
        """Let the first process alone do `action`; its result to all.

        Raises:
            InputError: on every process, if `action` raised it on the first, or the system refused it a file.
        """


@dataclass(frozen=True)
class OneProcess:
    """A run that has one process: nothing is exchanged."""

    place: Place = field(default_factory=Place)

    def share(self, value: Any) -> Any:
        """See Processes.share."""
        return value

    def gather(self, value: Any) -> list[Any]:
        """See Processes.gather."""
        return [value]

    def on_first(self, action: Callable[[], Any]) -> Any:
        """See Processes.on_first."""
        return action()


def part_of(items: Sequence[T], place: Place) -> list[T]:
    """A process's part of `items`, of which there is at least one.

    Every process gets equally many, so that all do the same number of things together: where there are not enough,
    the last of a part is the first item once more.
    """
    part = list(items[place.rank :: place.size])
    if len(part) * place.size < len(items) or not part:
        part.append(items[0])
    return part


def whole_of(parts: Sequence[Sequence[T]], count: int) -> list[T]:
    """What was made of `count` items, in their order, from what was made of each process's part (see part_of)."""
    return [parts[number % len(parts)][number // len(parts)] for number in range(count)]
