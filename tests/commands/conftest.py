"""What the tests of several commands ask of a command line."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch
from torch.nn.modules.module import register_module_forward_pre_hook

from ragstone.__main__ import main


def refused(capsys: pytest.CaptureFixture[str], words: Sequence[str]) -> str:
    """The one sentence with which a command line is refused: exit code 2, and nothing on standard output.

    A plan of one process may stand before it.
    """
    capsys.readouterr()
    assert main(words) == 2
    out, err = capsys.readouterr()
    assert out == ""
    if err.startswith("processes 1, on the "):
        err = err.partition("\n")[2]
    assert err.startswith(f"ragstone {words[0]}: ")
    assert err.count("\n") == 1
    return err


@dataclass(frozen=True)
class Layers:
    """Modules that computed."""

    classes: set[str] = field(default_factory=set)
    types: set[torch.dtype] = field(default_factory=set)
    """Of the weights of those that are plain linear layers."""


@contextmanager
def layers_called() -> Iterator[Layers]:
    """What computes within the with-block, and in which type."""
    called = Layers()

    def look(module: torch.nn.Module, _: Any) -> None:
        called.classes.add(type(module).__name__)
        if type(module) is torch.nn.Linear:
            called.types.add(module.weight.dtype)

    hook = register_module_forward_pre_hook(look)
    try:
        yield called
    finally:
        hook.remove()
