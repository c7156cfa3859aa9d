"""Knowledge sources of any size for benchmarks: invented passages, vectors with the structure of real ones, questions.

Shapes: n passages, Q questions, D dimensions, L latent dimensions.
"""

from __future__ import annotations

import itertools
import math
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ragstone.index.exact import exact_search
from ragstone.index.factory import POINTS_PER_CENTROID, factory_string
from ragstone.index.vector_index import build_index
from ragstone.knowledge.source import PASSAGES_NAME
from ragstone.knowledge.store import PassageStore, PassageWriter
from ragstone.output import new_folder
from ragstone.progress import ProgressBar, progress_bar
from ragstone.types import FloatArray

DIMENSION = 768
LATENT = 64
"""Dimensions in which most of the variance lies: embeddings of text fill a small part of their space."""
CLUSTERS = 1000
SEED = 0
QUESTIONS = 512
NEAREST = 5
REFERENCE_LINKS = 128
"""Links of an HNSW node in the reference's index."""
WORDS = 20_000
ROWS_AT_ONCE = 1000
SYLLABLES = [first + vowel for first in "bdfgklmnprstvz" for vowel in "aeiou"]
SECONDS_PER_NODE = 0.0015
"""Of one core, for a node of 32 links that is added to an HNSW graph of 100,000."""
SECONDS_PER_CODE = 0.0003
"""Of one core, for a vector that the codes of a product quantiser are learnt from."""
FLOPS = 74e9
"""Floating-point operations a second in FAISS's matrix products on one core. Both are from IVF-PQ indexes that were
built on two cores: 25 s over 100,000 vectors, 467 s over a million."""


@dataclass(frozen=True)
class SyntheticSource:
    """A folder with the passages of one size and the indexes over them. What is there already is used again."""

    folder: Path
    size: int
    dimension: int = DIMENSION
    """D of its vectors. Sources of different dimensions need different folders."""

    @property
    def passages_path(self) -> Path:
        return self.folder / str(self.size) / PASSAGES_NAME

    def index_path(self, index: str, m: int) -> Path:
        """Where `index` (flat, hnsw, ivfpq) is; `m` links a node tell hnsw ones apart."""
        return self.passages_path.parent / (f"hnsw{m}.faiss" if index == "hnsw" else f"{index}.faiss")

    def write_passages(self) -> None:
        """Write passages, questions and what exact search finds for them."""
        if self.passages_path.is_dir():
            return
        self.folder.mkdir(parents=True, exist_ok=True)
        with new_folder(self.passages_path.parent, "--folder") as folder:
            with (
                PassageWriter(folder / PASSAGES_NAME, self.dimension) as writer,
                progress_bar(f"Writing {self.size:,} passages", self.size) as bar,
            ):
                for titles, texts, vectors in _passages(self.size, self.dimension):
                    writer.write(titles, texts, vectors)
                    bar.advance(len(vectors))
            store = PassageStore(folder / PASSAGES_NAME)
            questions = _questions(store)
            np.save(folder / "questions.npy", questions)
            with progress_bar("Exact search", self.size) as bar:
                scores, _ = exact_search(_watched(store.vector_chunks(), bar), questions, NEAREST)
            np.save(folder / "exact.npy", scores)

    def write_index(self, index: str, m: int) -> None:
        """Build `index` over the passages."""
        path = self.index_path(index, m)
        if path.is_file():
            return
        new = path.with_suffix(".new")
        factory = factory_string(index, self.dimension, self.size, m)
        build_index(PassageStore(self.passages_path).vector_chunks, self.size, self.dimension, factory, new)
        new.replace(path)

    def write_reference_index(self) -> Path:
        """Build the index that the reference's script builds over the passages, and return its path."""
        import faiss

        path = self.passages_path.parent / "reference.faiss"
        if not path.is_file():
            index = faiss.IndexHNSWFlat(self.dimension, REFERENCE_LINKS, faiss.METRIC_INNER_PRODUCT)
            with progress_bar("Indexing", self.size) as bar:
                for chunk in PassageStore(self.passages_path).vector_chunks():
                    index.add(np.ascontiguousarray(chunk))
                    bar.advance(len(chunk))
            new = path.with_suffix(".new")
            faiss.write_index(index, str(new))
            new.replace(path)
        return path

    def bytes_needed(self, index: str, m: int) -> int:
        """Of disk, at most, for what is not there yet."""
        vectors = 4 * self.dimension * self.size
        passages = 0 if self.passages_path.is_dir() else vectors + 1000 * self.size
        compressed = vectors // 16 if index == "ivfpq" else vectors + 10 * m * self.size
        return passages + (0 if self.index_path(index, m).is_file() else compressed)

    def questions(self) -> FloatArray:
        """Question vectors [Q, D]."""
        return np.load(self.passages_path.parent / "questions.npy")

    def exact_scores(self) -> FloatArray:
        """Inner products [Q, NEAREST] of each question with the passages nearest to it, best first."""
        return np.load(self.passages_path.parent / "exact.npy")


def estimated_seconds(index: str, size: int, m: int) -> float:
    """Roughly how long building takes on the cores that this process may use."""
    cores = len(os.sched_getaffinity(0))
    if index == "hnsw":
        # Each tenfold makes the way to the neighbours longer.
        return size * m / 32 * SECONDS_PER_NODE * 1.5 ** (math.log10(size) - 5) / cores
    if index == "ivfpq":
        lists = min(4 * math.sqrt(size), size / POINTS_PER_CENTROID)
        # Ten rounds of k-means, then each vector to its list.
        coarse = 11 * 2 * DIMENSION * size * lists / FLOPS
        return (coarse + SECONDS_PER_CODE * min(size, 2**16)) / cores
    return 0.0


def vector_chunks(size: int, dimension: int) -> Iterator[FloatArray]:
    """As many vectors as a source of one size has, of the same kind, chunk by chunk and without texts."""
    space = Space(dimension)
    for start in range(0, size, ROWS_AT_ONCE):
        yield space.vectors(np.random.default_rng((SEED, start)), min(ROWS_AT_ONCE, size - start))


def _passages(size: int, dimension: int) -> Iterator[tuple[list[str], list[str], FloatArray]]:
    """Titles, texts and vectors of so many passages, ROWS_AT_ONCE at a time, each from a seed of its own."""
    words = _words()
    space = Space(dimension)
    for start in range(0, size, ROWS_AT_ONCE):
        rng = np.random.default_rng((SEED, start))
        count = min(ROWS_AT_ONCE, size - start)
        lengths = rng.integers(80, 121, count)
        titles = [" ".join(words[i] for i in row) for row in rng.integers(0, WORDS, (count, 3)).tolist()]
        texts = [" ".join(words[i] for i in rng.integers(0, WORDS, length).tolist()) for length in lengths]
        yield titles, texts, space.vectors(rng, count)


def _words() -> list[str]:
    """Words of two to four syllables."""
    rng = np.random.default_rng(SEED)
    every = ["".join(pair) for pair in itertools.product(SYLLABLES, repeat=2)]
    longer = [
        "".join(SYLLABLES[i] for i in row[: 3 + row[0] % 2]) for row in rng.integers(0, len(SYLLABLES), (WORDS, 4))
    ]
    return (every + longer)[:WORDS]


class Space:
    """Clusters in a subspace whose directions have less and less variance, and a little noise in all dimensions."""

    def __init__(self, dimension: int) -> None:
        rng = np.random.default_rng(SEED)
        basis, _ = np.linalg.qr(rng.standard_normal((dimension, min(dimension, LATENT))))
        self._dimension = dimension
        self._basis = (basis.T / np.sqrt(1 + np.arange(basis.shape[1])[:, None] / 8)).astype(np.float32)
        self._centres = rng.standard_normal((CLUSTERS, basis.shape[1]), dtype=np.float32)

    def vectors(self, rng: np.random.Generator, count: int) -> FloatArray:
        """Vectors [count, D] of length 1."""
        latent = self._centres[rng.integers(0, CLUSTERS, count)] + 0.7 * rng.standard_normal(
            (count, self._centres.shape[1]), dtype=np.float32
        )
        return _unit(latent @ self._basis + 0.05 * rng.standard_normal((count, self._dimension), dtype=np.float32))


def _watched(chunks: Iterator[FloatArray], bar: ProgressBar) -> Iterator[FloatArray]:
    for chunk in chunks:
        yield chunk
        bar.advance(len(chunk))


def _questions(store: PassageStore) -> FloatArray:
    """Question vectors [Q, D], each not far from a passage."""
    rng = np.random.default_rng(SEED)
    vectors = store.vectors(rng.integers(0, len(store), QUESTIONS))
    return _unit(vectors + _unit(rng.standard_normal(vectors.shape, dtype=np.float32)))


def _unit(vectors: FloatArray) -> FloatArray:
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
