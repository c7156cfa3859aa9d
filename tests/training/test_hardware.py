"""accelerate as a run sees it."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch
from accelerate.utils import DistributedType

from ragstone.training.hardware import accelerator_for


def test_one_process_of_torchrun_makes_no_process_group(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    alone = {"RANK": "0", "WORLD_SIZE": "1", "LOCAL_RANK": "0", "LOCAL_WORLD_SIZE": "1"}
    for name, value in alone.items():
        monkeypatch.setenv(name, value)
    with accelerator_for(torch.device("cpu"), "no", [], tmp_path) as accelerator:
        assert accelerator.distributed_type == DistributedType.NO
        assert not torch.distributed.is_initialized()
    assert os.environ["LOCAL_RANK"] == "0"
