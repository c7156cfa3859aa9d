from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import faiss
import numpy as np
import pytest

from ragstone.errors import InputError
from ragstone.index.exact import exact_search, recall
from ragstone.index.vector_index import EF_SEARCH, PROBES, VectorIndex, build_index

COUNT, DIMENSION = 2000, 16
VECTORS = np.random.default_rng(0).standard_normal((COUNT, DIMENSION)).astype(np.float32)
QUERIES = np.random.default_rng(1).standard_normal((40, DIMENSION)).astype(np.float32)


def stream() -> Iterator[np.ndarray]:
    """The vectors in chunks of uneven size."""
    for start, end in ((0, 700), (700, 701), (701, COUNT)):
        yield VECTORS[start:end]


def build(path: Path, factory: str) -> VectorIndex:
    build_index(stream, COUNT, DIMENSION, factory, path)
    return VectorIndex.open(path)


def test_a_streamed_flat_index_is_faiss_own_file(tmp_path: Path) -> None:
    index = faiss.IndexFlatIP(DIMENSION)
    index.add(VECTORS)
    faiss.write_index(index, str(tmp_path / "faiss"))
    build(tmp_path / "streamed", "Flat")
    assert (tmp_path / "streamed").read_bytes() == (tmp_path / "faiss").read_bytes()


def test_a_flat_index_is_exact(tmp_path: Path) -> None:
    scores, ids = build(tmp_path / "index", "Flat").search(QUERIES, 20)
    exact_scores, exact_ids = exact_search(stream(), QUERIES, 20)
    np.testing.assert_array_equal(ids, exact_ids)
    np.testing.assert_allclose(scores, exact_scores, rtol=1e-5)


@pytest.mark.parametrize(
    ("factory", "floor"),
    [
        ("HNSW32,Flat", 0.99),
        ("IVF8,Flat", 0.99),
        ("IVF16,SQ8", 0.95),
        ("IVF8,PQ16x4", 0.7),
        ("PCA16,IVF8,SQ8", 0.95),
        ("HNSW16,SQ8", 0.95),
        ("SQfp16", 0.98),
        ("IVF8_HNSW8,Flat", 0.99),
    ],
)
def test_other_indexes_are_near_exact_search(tmp_path: Path, factory: str, floor: float) -> None:
    index = build(tmp_path / "index", factory)
    assert (len(index), index.dimension) == (COUNT, DIMENSION)
    _, ids = index.search(QUERIES, 10)
    exact, _ = exact_search(stream(), QUERIES, 10)
    found = -np.sort(-np.einsum("bd,bnd->bn", QUERIES, VECTORS[ids]), axis=1)
    assert recall(found, exact, 10) >= floor


OPEN = """
import sys
from pathlib import Path
import faiss, numpy, psutil
from ragstone.index.vector_index import VectorIndex
def own():
    memory = psutil.Process().memory_info()
    return memory.rss - memory.shared
before = own()
index = VectorIndex.open(Path(sys.argv[1]))
assert (index.search(numpy.ones((2, index.dimension), numpy.float32), 5)[1] >= 0).all()
print(own() - before)
"""


@pytest.mark.parametrize("factory", ["HNSW4_SQ8", "IVF64_HNSW4,SQ8"])
def test_the_codes_of_the_published_kinds_of_wiki_dpr_stay_in_the_map(tmp_path: Path, factory: str) -> None:
    """A graph over 8-bit codes, and lists of codes behind a graph: long vectors here, so that the codes weigh most."""
    vectors = np.random.default_rng(0).standard_normal((1500, 8192), dtype=np.float32)
    path = tmp_path / "index"
    build_index(lambda: iter([vectors]), *vectors.shape, factory, path)
    added = int(subprocess.run([sys.executable, "-c", OPEN, path], capture_output=True, text=True, check=True).stdout)
    assert path.stat().st_size > vectors.size
    assert added < vectors.size / 10


BUILD = """
import sys
from pathlib import Path
import faiss, numpy
from ragstone.index.vector_index import build_index
def peak():
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(1024 * int(line.split()[1]) for line in lines if line.startswith("VmHWM"))
vectors = numpy.random.default_rng(0).standard_normal((1024, 2048), dtype=numpy.float32)
count = 8 * len(vectors) + 1
before = peak()
build_index(lambda: iter([vectors] * 8 + [vectors[:1]]), count, 2048, "HNSW4,Flat", Path(sys.argv[1]))
print(peak() - before)
"""


def test_a_graph_takes_the_memory_that_it_needs_once(tmp_path: Path) -> None:
    """Eight thousand vectors and one more, at which what has room for eight thousand is copied into twice as much."""
    path = tmp_path / "index"
    done = subprocess.run([sys.executable, "-c", BUILD, path], capture_output=True, text=True, check=True)
    assert int(done.stdout) < 1.2 * path.stat().st_size + 20e6


def test_search_is_wider_than_faiss_default_also_within_composed_indexes(tmp_path: Path) -> None:
    hnsw = build(tmp_path / "hnsw", "HNSW8,Flat")
    assert faiss.downcast_index(hnsw.faiss_index).hnsw.efSearch == EF_SEARCH
    ivf = build(tmp_path / "ivf", "IVF64,Flat")
    assert faiss.downcast_index(ivf.faiss_index).nprobe == PROBES
    composed = build(tmp_path / "composed", "PCA8,IVF8,Flat")
    assert faiss.extract_index_ivf(composed.faiss_index).nprobe == 8


def test_more_results_than_vectors(tmp_path: Path) -> None:
    build_index(lambda: iter([VECTORS[:3]]), 3, DIMENSION, "Flat", tmp_path / "index")
    _, ids = VectorIndex.open(tmp_path / "index").search(QUERIES, 5)
    assert (ids[:, 3:] == -1).all()
    assert (np.sort(ids[:, :3], axis=1) == [0, 1, 2]).all()


def test_no_queries(tmp_path: Path) -> None:
    scores, ids = build(tmp_path / "index", "Flat").search(QUERIES[:0], 4)
    assert scores.shape == ids.shape == (0, 4)


@pytest.mark.parametrize(
    ("factory", "message"),
    [
        ("garbage", "--index 'garbage' is not a FAISS factory string for 16 dimensions"),
        ("PQ5x8", "--index 'PQ5x8' is not|The index PQ5x8 cannot be built"),
        ("IVF5000,Flat", "The index IVF5000,Flat cannot be built over 2000 vectors; use --index flat"),
    ],
)
def test_unusable_factory_strings(tmp_path: Path, factory: str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        build_index(stream, COUNT, DIMENSION, factory, tmp_path / "index")
    assert not (tmp_path / "index").exists()


def test_files_that_are_no_index(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"There is no index file .*nowhere"):
        VectorIndex.open(tmp_path / "nowhere")
    (tmp_path / "text").write_text("not an index", encoding="utf-8")
    with pytest.raises(InputError, match="text is not a FAISS index"):
        VectorIndex.open(tmp_path / "text")
    build(tmp_path / "cut", "Flat")
    (tmp_path / "cut").write_bytes((tmp_path / "cut").read_bytes()[:5000])
    with pytest.raises(InputError, match="cut is not a FAISS index"):
        VectorIndex.open(tmp_path / "cut")


def test_a_stream_that_ends_early_is_a_fault(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match="2000 vectors came instead of 2001"):
        build_index(stream, COUNT + 1, DIMENSION, "Flat", tmp_path / "index")
