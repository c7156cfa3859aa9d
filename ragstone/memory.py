"""How much memory there is: the machine's, or what a container or a batch system lets this process have of it.

Linux keeps such limits in control groups, of which there are two versions; a group's limit holds for all below it.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import psutil

CGROUPS = Path("/sys/fs/cgroup")
OWN_GROUPS = Path("/proc/self/cgroup")


@dataclass(frozen=True)
class Memory:
    """Bytes."""

    total: int
    available: int
    """That can be taken now, without what others hold; pages of files, which the system gives back, are free."""


def memory(own_groups: Path = OWN_GROUPS, cgroups: Path = CGROUPS) -> Memory:
    """What this process may use; the arguments are where Linux says it."""
    machine = psutil.virtual_memory()
    total, available = int(machine.total), int(machine.available)
    for group in _groups(own_groups, cgroups):
        limit = _number(group / "memory.max", group / "memory.limit_in_bytes")
        used = _number(group / "memory.current", group / "memory.usage_in_bytes")
        if limit is not None and used is not None:
            total = min(total, limit)
            available = min(available, limit - used + _file_pages(group / "memory.stat"))
    return Memory(total, max(0, available))


def _groups(own_groups: Path, cgroups: Path) -> Iterator[Path]:
    """The control groups for memory that this process is in, each with those above it, as far as they can be seen."""
    try:
        lines = own_groups.read_text(encoding="utf-8").splitlines()
    except OSError:
        return
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if controllers == "" or "memory" in controllers.split(","):
            root = cgroups / controllers
            group = root / path.lstrip("/")
            yield from (folder for folder in (group, *group.parents) if folder.is_relative_to(root) and folder.is_dir())


def _number(*paths: Path) -> int | None:
    """The number in the first of `paths` that there is; None where it is none ("max": no limit)."""
    for path in paths:
        try:
            text = path.read_text(encoding="utf-8").strip()
        except OSError:
            continue
        return int(text) if text.isdecimal() else None
    return None


def _file_pages(statistics: Path) -> int:
    """Bytes of files that a group has in memory, which count as used and can be taken back."""
    try:
        lines = statistics.read_text(encoding="utf-8").splitlines()
    except OSError:
        return 0
    found = dict(line.split() for line in lines)
    # The first version counts a group alone by one name, and with those below it by another.
    kinds = ("total_inactive_file", "total_active_file") if "total_inactive_file" in found else ()
    return sum(int(found.get(kind, 0)) for kind in kinds or ("inactive_file", "active_file"))
