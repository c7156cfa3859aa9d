"""Denormal numbers, and the threads that make them, in processes of their own."""

from __future__ import annotations

import json
import multiprocessing
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import pytest
import torch
from torch.nn.modules.module import register_module_forward_pre_hook

from ragstone.__main__ import main
from ragstone.denormals import flushing_denormals

MANY, PRODUCTS = 2**22, 400 * 400
"""Numbers, so many that all threads have their part of them."""


def denormals() -> int:
    """How many come out where there are no others, on two threads."""
    torch.set_num_threads(2)
    return int((torch.full((MANY,), 1e-30) * 1e-10).count_nonzero())


def products() -> int:
    """How many come out of a matrix product, whose threads are those of another library."""
    torch.set_num_threads(2)
    return int((torch.full((400, 100), 1e-20) @ torch.full((100, 400), 1e-21)).count_nonzero())


def counts() -> list[int]:
    return [products(), denormals()]


def around() -> list[list[int]]:
    """Before, within, within and behind another one, and behind."""
    found = [counts()]
    with flushing_denormals():
        found.append(counts())
        with flushing_denormals():
            pass
        found.append(counts())
    return [*found, counts()]


def behind() -> list[int]:
    """Behind one that ended in an error."""
    try:
        with flushing_denormals():
            raise FileNotFoundError
    except FileNotFoundError:
        return counts()


def train(words: list[str]) -> set[int]:
    """How many there are when a command computes, in a process whose threads have computed before."""
    assert products() == PRODUCTS
    seen = set()
    hook = register_module_forward_pre_hook(lambda *_: seen.add(products()))
    try:
        assert main(words) == 0
    finally:
        hook.remove()
    return seen


@pytest.fixture
def process() -> Iterator[ProcessPoolExecutor]:
    if not torch.set_flush_denormal(False):
        pytest.skip("this processor cannot flush denormal numbers")
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
        yield pool


def test_threads_that_compute_already_flush_them_within_the_block(process: ProcessPoolExecutor) -> None:
    all_of_them = [PRODUCTS, MANY]
    assert process.submit(around).result() == [all_of_them, [0, 0], [0, 0], all_of_them]


def test_it_ends_when_something_goes_wrong(process: ProcessPoolExecutor) -> None:
    assert process.submit(behind).result() == [PRODUCTS, MANY]


def test_finetune_computes_without_them(
    process: ProcessPoolExecutor, tmp_path: Path, pairs_folder: Path, checkpoint_folder: Path, source_folder: Path
) -> None:
    words = ["finetune", "--model_name_or_path", str(checkpoint_folder), "--passages_path", str(source_folder)]
    words += ["--data_dir", str(pairs_folder), "--output_dir", str(tmp_path / "run"), "--max_steps", "1"]
    assert process.submit(train, words).result() == {0}


def test_train_retriever_computes_without_them(process: ProcessPoolExecutor, tmp_path: Path) -> None:
    # The other tests' processes would import all of this, too.
    from tests.commands.test_train_retriever import FRESH, entries

    path = tmp_path / "train.json"
    path.write_text(json.dumps(entries()), encoding="utf-8")
    words = ["train-retriever", "--train_path", str(path), "--output_dir", str(tmp_path / "run"), "--max_steps", "1"]
    assert process.submit(train, [*words, *FRESH]).result() == {0}
