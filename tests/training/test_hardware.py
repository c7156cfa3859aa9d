"""accelerate as a run sees it."""

from __future__ import annotations

import gc
import os
import weakref
from pathlib import Path

import pytest
import torch
from accelerate.utils import DistributedType

from ragstone.arithmetic import MixedPrecision
from ragstone.training.hardware import accelerator_for, prepare, release


def test_one_process_of_torchrun_makes_no_process_group(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    alone = {"RANK": "0", "WORLD_SIZE": "1", "LOCAL_RANK": "0", "LOCAL_WORLD_SIZE": "1"}
    for name, value in alone.items():
        monkeypatch.setenv(name, value)
    with accelerator_for(torch.device("cpu"), "no", [], tmp_path) as accelerator:
        assert accelerator.distributed_type == DistributedType.NO
        assert not torch.distributed.is_initialized()
    assert os.environ["LOCAL_RANK"] == "0"


@pytest.mark.parametrize("precision", ["no", "bf16", "fp16"])
def test_nothing_stays_of_what_is_released(tmp_path: Path, precision: MixedPrecision) -> None:
    """Without waiting for the next time that Python looks for garbage."""
    gc.disable()
    try:
        with accelerator_for(torch.device("cpu"), precision, [], tmp_path) as accelerator:
            model = torch.nn.Linear(2, 2)
            optimizer = torch.optim.AdamW(model.parameters())
            wrapped, stepped = prepare(accelerator, model, optimizer)
            there = [weakref.ref(model), weakref.ref(optimizer)]
            del model, optimizer, wrapped, stepped
            assert all(kept() is not None for kept in there)
            release(accelerator)
            assert all(kept() is None for kept in there)
    finally:
        gc.enable()
