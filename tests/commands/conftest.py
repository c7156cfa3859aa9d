"""What the tests of several commands ask of a command line."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from ragstone.__main__ import main


def refused(capsys: pytest.CaptureFixture[str], words: Sequence[str]) -> str:
    """The one sentence with which a command line is refused: exit code 2, and nothing on standard output."""
    capsys.readouterr()
    assert main(words) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith(f"ragstone {words[0]}: ")
    assert err.count("\n") == 1
    return err
