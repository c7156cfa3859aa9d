"""Which folders of a run are checkpoints."""

from __future__ import annotations

from pathlib import Path

import pytest

from ragstone.errors import InputError
from ragstone.evaluation.checkpoints import find_checkpoints


def test_each_checkpoint_once_by_number(tmp_path: Path) -> None:
    for name in ("checkpoint100", "checkpoint20", "checkpoint3", ".checkpoint4"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "config.json").write_text("{}")
    (tmp_path / "runs").mkdir()
    (tmp_path / "best").symlink_to("checkpoint20")
    (tmp_path / "last").symlink_to("checkpoint100")
    (tmp_path / "metrics.json").write_text("{}")
    assert [path.name for path in find_checkpoints(tmp_path)] == ["checkpoint3", "checkpoint20", "checkpoint100"]


def test_no_checkpoints(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="has no checkpoint folders"):
        find_checkpoints(tmp_path)
    with pytest.raises(InputError, match="There is no folder"):
        find_checkpoints(tmp_path / "missing")
