"""What a benchmark's figures were taken on."""

from __future__ import annotations

import dataclasses
import platform
import subprocess
from pathlib import Path
from typing import Any


def commit() -> str:
    """The commit that is checked out here, with -dirty where files differ from it."""
    command = ["git", "describe", "--always", "--dirty", "--exclude=*"]
    return subprocess.run(command, capture_output=True, text=True, check=False).stdout.strip() or "unknown"


def command(program: str, settings: Any) -> str:
    """The command line that gives `settings`, a dataclass of flags, without the paths of one machine."""
    words = [program]
    for field in dataclasses.fields(settings):
        value = getattr(settings, field.name)
        if value == field.default:
            continue
        if isinstance(value, bool):
            words.append(f"--{field.name}")
        else:
            words.append(f"--{field.name} {field.name.upper() if isinstance(value, Path) else value}")
    return " ".join(words)


def processor() -> str:
    """The CPU's name."""
    lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    return next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), platform.machine())
