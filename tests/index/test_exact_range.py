"""Exact search over ranges: what FAISS's flat index finds, to the last bit the same where a corpus is divided."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from ragstone.denormals import flushing_denormals
from ragstone.index.exact import exact_search
from ragstone.index.exact_range import BLOCK, GROUP, ExactRange, divide
from ragstone.index.searcher import best_of
from ragstone.index.vector_index import VectorIndex, build_index, is_flat
from ragstone.types import FloatArray

DIMENSION = 32
DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU here"))]


def vectors(count: int, seed: int = 0) -> FloatArray:
    return np.random.default_rng(seed).normal(size=(count, DIMENSION)).astype(np.float32)


@pytest.mark.parametrize(
    ("rows", "parts"), [(10, 1), (10, 3), (7, 7), (2, 4), (1000, 5), (5000, 2), (30_000, 3), (16_384, 4)]
)
def test_divide(rows: int, parts: int) -> None:
    ranges = divide(rows, parts)
    assert [row for first, last in ranges for row in range(first, last)] == list(range(rows))
    assert len(ranges) == parts
    lengths = [last - first for first, last in ranges]
    assert max(lengths) - min(lengths) <= BLOCK + rows % BLOCK
    assert all(first % BLOCK == 0 for first, last in ranges if first < last)


@pytest.mark.parametrize("parts", [1, 2, 5])
@pytest.mark.parametrize("queries", [1, 7, 32])
@pytest.mark.parametrize("count", [50, 9000, 30_000])
def test_the_best_of_the_parts_are_the_best_of_the_whole(tmp_path: Path, parts: int, queries: int, count: int) -> None:
    """Ids and scores without tolerance; as FAISS's own search of a flat index finds them, but for rounding."""
    corpus = vectors(count)
    build_index(lambda: iter([corpus]), count, DIMENSION, "Flat", tmp_path / "index")
    index = VectorIndex.open(tmp_path / "index")
    matrix = index.matrix()
    assert matrix is not None
    np.testing.assert_array_equal(matrix, corpus)
    asked = vectors(queries, seed=1)
    scores, ids = index.search(asked, 20)
    found = [ExactRange([matrix[first:last]], first).search(asked, 20) for first, last in divide(count, parts)]
    merged_scores, merged_ids = best_of(found, 20)
    np.testing.assert_array_equal(merged_ids, ids)
    np.testing.assert_array_equal(merged_scores, scores)
    faiss_scores, faiss_ids = index.faiss_index.search(asked, 20)
    np.testing.assert_array_equal(ids, faiss_ids)
    np.testing.assert_allclose(scores, faiss_scores, rtol=1e-5)


def test_many_chunks_and_too_few_vectors() -> None:
    corpus = vectors(10)
    asked = vectors(3, seed=2)
    scores, ids = ExactRange([corpus[:4], corpus[4:5], corpus[5:]], 100).search(asked, 12)
    exact_scores, exact_ids = exact_search([corpus], asked, 12)
    np.testing.assert_array_equal(ids, np.where(exact_ids < 0, -1, exact_ids + 100))
    np.testing.assert_allclose(scores, exact_scores, rtol=1e-5)
    assert ids[0, 10:].tolist() == [-1, -1]


@pytest.mark.parametrize("device", DEVICES)
def test_on_a_device_of_torch(monkeypatch: pytest.MonkeyPatch, device: str) -> None:
    monkeypatch.setattr("ragstone.index.exact_range.BLOCK_ON_DEVICE", 300)
    monkeypatch.setattr("ragstone.index.exact_range.QUERIES_ON_DEVICE", 4)
    corpus = vectors(1000)
    asked = vectors(9, seed=3)
    scores, ids = ExactRange([corpus[:600], corpus[600:]], 50, torch.device(device)).search(asked, 15)
    exact_scores, exact_ids = exact_search([corpus], asked, 15)
    np.testing.assert_array_equal(ids, exact_ids + 50)
    np.testing.assert_allclose(scores, exact_scores, rtol=1e-5)


@pytest.mark.parametrize("device", [None, *DEVICES])
def test_the_search_is_exact_whatever_precision_others_multiply_in(device: str | None) -> None:
    """On processors with instructions for bfloat16, and on GPUs with TF32, others lose digits by that."""
    corpus, asked = vectors(1000), vectors(9, seed=3)
    searcher = ExactRange([corpus], 0, None if device is None else torch.device(device))
    expected = searcher.search(asked, 15)
    products = (torch.backends.cuda.matmul, torch.backends.mkldnn.matmul)
    kept = [product.fp32_precision for product in products]
    try:
        torch.set_float32_matmul_precision("medium")
        found = [searcher.search(asked, 15)]
        assert torch.get_float32_matmul_precision() == "medium"
        # For one kind of device alone, after which torch refuses to say what holds for all.
        torch.set_float32_matmul_precision("highest")
        products[1].fp32_precision = "bf16"
        found.append(searcher.search(asked, 15))
        assert products[1].fp32_precision == "bf16"
    finally:
        for product, precision in zip(products, kept, strict=True):
            product.fp32_precision = precision
    for scores, ids in found:
        np.testing.assert_array_equal(scores, expected[0])
        np.testing.assert_array_equal(ids, expected[1])


def test_no_questions_and_no_vectors() -> None:
    nothing = np.empty((0, DIMENSION), np.float32)
    for searcher in (ExactRange([vectors(3)], 0), ExactRange([vectors(3)], 0, torch.device("cpu"))):
        scores, ids = searcher.search(nothing, 2)
        assert scores.shape == ids.shape == (0, 2)
    for searcher in (ExactRange([], 7), ExactRange([], 7, torch.device("cpu"))):
        assert searcher.search(vectors(2), 3)[1].tolist() == [[-1] * 3] * 2


def test_equal_scores_are_ordered_by_id() -> None:
    twin = np.ones((1, DIMENSION), np.float32)
    found = [(np.array([[3.0, 1.0]], np.float32), np.array([[9, 2]])), (np.array([[3.0]], np.float32), np.array([[4]]))]
    scores, ids = best_of(found, 2)
    assert ids.tolist() == [[4, 9]] and scores.tolist() == [[3.0, 3.0]]
    assert ExactRange([np.repeat(twin, 5, axis=0)], 0).search(twin, 3)[1].tolist() == [[0, 1, 2]]
    # Twins in later groups do not push out earlier ones, but what is nearer does.
    corpus = np.repeat(twin, 3 * GROUP, axis=0)
    corpus[2 * GROUP + 5] *= 2
    assert ExactRange([corpus], 0).search(twin, 4)[1].tolist() == [[2 * GROUP + 5, 0, 1, 2]]


@pytest.mark.parametrize("order", ["ascending", "descending"])
def test_scores_in_order(order: str) -> None:
    """Where each group is better than all before it, and where nothing is after the first."""
    lengths = np.arange(1, 2 * GROUP + 100, dtype=np.float32)
    corpus = np.outer(lengths if order == "ascending" else lengths[::-1], np.ones(DIMENSION, np.float32))
    asked = np.ones((3, DIMENSION), np.float32)
    best = np.arange(len(corpus))[::-1][:7] if order == "ascending" else np.arange(7)
    scores, ids = ExactRange([corpus], 0).search(asked, 7)
    assert ids.tolist() == [best.tolist()] * 3
    np.testing.assert_array_equal(scores, (corpus[ids] * asked[:, None]).sum(-1))


def test_a_vector_that_is_no_number_is_never_found() -> None:
    corpus = vectors(40)
    corpus[[3, 20]] = np.nan
    asked = vectors(2, seed=5)
    _, ids = ExactRange([corpus], 0).search(asked, 40)
    there = np.delete(np.arange(40), [3, 20])
    for row in ids:
        assert sorted(row[:38]) == there.tolist() and row[38:].tolist() == [-1, -1]
    # Among so many that the lowest are left out before the rest is sorted.
    corpus = vectors(GROUP)
    corpus[:7] = np.nan
    _, ids = ExactRange([corpus], 0).search(asked, 5)
    np.testing.assert_array_equal(ids, exact_search([corpus[7:]], asked, 5)[1] + 7)


@pytest.mark.parametrize("nearest", [None, 3])
def test_scores_of_zero_are_found_where_denormal_numbers_are_flushed(nearest: int | None) -> None:
    """As in training. Many of them, so that the lowest are left out first."""
    corpus = np.zeros((2 * GROUP, DIMENSION), np.float32)
    if nearest is not None:
        corpus[nearest] = 1
    asked = np.ones((2, DIMENSION), np.float32)
    with flushing_denormals():
        for device in (None, torch.device("cpu")):
            _, ids = ExactRange([corpus], 0, device).search(asked, 4)
            assert ids.tolist() == [[0, 1, 2, 3] if nearest is None else [3, 0, 1, 2]] * 2


def test_half_precision_around_the_search_does_not_reach_into_it() -> None:
    corpus, asked = vectors(500), vectors(4, seed=6)
    alone = ExactRange([corpus], 0).search(asked, 6)
    with torch.autocast("cpu", torch.bfloat16):
        within = ExactRange([corpus], 0).search(asked, 6)
    np.testing.assert_array_equal(within[0], alone[0])


def test_a_map_is_read_where_it_is() -> None:
    """Without a copy, and without a warning that it or a question cannot be written: pytest makes those errors."""
    torch.set_warn_always(True)
    corpus = vectors(100)
    corpus.flags.writeable = False
    searcher = ExactRange([corpus], 0)
    corpus.flags.writeable = True
    corpus[42] *= 100
    asked = corpus[42:43].copy()
    asked.flags.writeable = False
    assert searcher.search(asked, 1)[1].tolist() == [[42]]
    torch.set_warn_always(False)


@pytest.mark.parametrize("factory", ["HNSW8,Flat", "FlatIPPanorama8"])
def test_an_index_that_keeps_vectors_in_its_own_way_has_no_matrix(tmp_path: Path, factory: str) -> None:
    build_index(lambda: iter([vectors(100)]), 100, DIMENSION, factory, tmp_path / "index")
    index = VectorIndex.open(tmp_path / "index")
    assert index.matrix() is None and not is_flat(tmp_path / "index")
    asked = vectors(20, seed=7)
    np.testing.assert_array_equal(index.search(asked, 3)[1], exact_search([vectors(100)], asked, 3)[1])
