"""Memory as control groups leave it to a process: files as Linux writes them, and this machine's own."""

from __future__ import annotations

from pathlib import Path

import psutil
import pytest

from ragstone.memory import memory

MIB = 2**20


def write(folder: Path, **numbers: object) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for name, value in numbers.items():
        (folder / name.replace("__", ".")).write_text(f"{value}\n")


def test_the_narrowest_limit_of_the_groups_above_counts(tmp_path: Path) -> None:
    own = tmp_path / "own"
    own.write_text("0::/jobs/one\n")
    write(tmp_path / "cg" / "jobs" / "one", memory__max="max", memory__current=20 * MIB)
    write(tmp_path / "cg" / "jobs", memory__max=100 * MIB, memory__current=70 * MIB)
    (tmp_path / "cg" / "jobs" / "memory.stat").write_text(f"anon 5\ninactive_file {10 * MIB}\nactive_file {20 * MIB}\n")
    found = memory(own, tmp_path / "cg")
    assert (found.total, found.available) == (100 * MIB, 60 * MIB)


def test_the_first_version_of_control_groups(tmp_path: Path) -> None:
    """In a container, the group's own path is that of the host, and what is mounted is the group."""
    own = tmp_path / "own"
    own.write_text("5:cpu:/docker/ab\n4:memory:/docker/ab\n0::/\n")
    write(tmp_path / "cg" / "memory", memory__limit_in_bytes=50 * MIB, memory__usage_in_bytes=60 * MIB)
    found = memory(own, tmp_path / "cg")
    assert (found.total, found.available) == (50 * MIB, 0)
    counts = ["inactive_file 1", "active_file 1", f"total_inactive_file {5 * MIB}", f"total_active_file {9 * MIB}"]
    (tmp_path / "cg" / "memory" / "memory.stat").write_text("\n".join(counts))
    assert memory(own, tmp_path / "cg").available == 4 * MIB


@pytest.mark.parametrize("groups", ["0::/\n", ""])
def test_without_limits_it_is_the_machines(tmp_path: Path, groups: str) -> None:
    own = tmp_path / "own"
    own.write_text(groups)
    assert memory(own, tmp_path / "cg").total == psutil.virtual_memory().total
    assert memory(tmp_path / "none", tmp_path / "cg").total == psutil.virtual_memory().total


def test_this_machine_leaves_this_process_something() -> None:
    found = memory()
    assert 0 < found.available <= found.total <= psutil.virtual_memory().total
