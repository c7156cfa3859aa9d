"""What the environment says about a process's place."""

from __future__ import annotations

import pytest

from ragstone.errors import InputError
from ragstone.processes.environment import ACCELERATE, Place, place, refuse_other_training

TORCHRUN = {"RANK": "3", "WORLD_SIZE": "4", "LOCAL_RANK": "1", "LOCAL_WORLD_SIZE": "2"}
TORCHRUN |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "29500"}


@pytest.fixture(autouse=True)
def clean(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in TORCHRUN:
        monkeypatch.delenv(name, raising=False)


def test_a_process_started_by_hand_is_alone() -> None:
    assert place() == Place(rank=0, size=1, local_rank=0, local_size=1)
    assert place().is_first


def test_one_process_of_torchrun_is_alone_too(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {"RANK": "0", "WORLD_SIZE": "1", "LOCAL_RANK": "0", "LOCAL_WORLD_SIZE": "1"}.items():
        monkeypatch.setenv(name, value)
    assert place() == Place()


def test_torchruns_variables(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in TORCHRUN.items():
        monkeypatch.setenv(name, value)
    assert place() == Place(rank=3, size=4, local_rank=1, local_size=2)
    assert not place().is_first


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("RANK", None, "WORLD_SIZE is 4, but RANK is ''"),
        ("LOCAL_RANK", "one", "WORLD_SIZE is 4, but LOCAL_RANK is 'one'"),
        ("RANK", "4", "contradicts itself: RANK 4, WORLD_SIZE 4"),
        ("LOCAL_WORLD_SIZE", "5", "contradicts itself"),
        ("MASTER_ADDR", None, "WORLD_SIZE is 4, but MASTER_ADDR is '' and MASTER_PORT '29500'"),
        ("MASTER_PORT", None, "MASTER_ADDR is '127.0.0.1' and MASTER_PORT '':"),
        ("MASTER_PORT", "http", "and MASTER_PORT 'http':"),
        ("MASTER_PORT", "65536", "and MASTER_PORT '65536':"),
    ],
)
def test_a_senseless_environment(monkeypatch: pytest.MonkeyPatch, name: str, value: str | None, message: str) -> None:
    for known, given in TORCHRUN.items():
        monkeypatch.setenv(known, given)
    if value is None:
        monkeypatch.delenv(name)
    else:
        monkeypatch.setenv(name, value)
    with pytest.raises(InputError, match=message):
        place()


@pytest.mark.parametrize("name", ACCELERATE)
def test_accelerate_launch_that_is_to_do_more(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    for known in ACCELERATE:
        monkeypatch.delenv(known, raising=False)
    for off in (None, "false", "NO", "no", "0", ""):
        if off is not None:
            monkeypatch.setenv(name, off)
        refuse_other_training()
    monkeypatch.setenv(name, "INDUCTOR" if name.endswith("BACKEND") else "true")
    with pytest.raises(InputError, match=rf"^accelerate launch was told to train with .* \({name}\), but each"):
        refuse_other_training()
