"""A FAISS index over inner products: built from a stream of vectors, saved, opened memory-mapped, searched.

Shapes: B queries, N results, D dimensions.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterator
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from ragstone.errors import InputError
from ragstone.index.empty import TRAINING_VECTORS, empty_index, links_per_node, too_few
from ragstone.index.matrix_products import matrix_products
from ragstone.index.searcher import Searcher, nothing_found
from ragstone.progress import activity, progress_bar
from ragstone.types import FloatArray, IntArray

EF_CONSTRUCTION = 200
EF_SEARCH = 128
"""HNSW's search breadth. FAISS's default of 16 loses several percent of the nearest passages."""
PROBES = 32
"""Lists that an IVF index looks into."""

FLAT_KINDS = (b"IxFI", b"IxF2", b"IxFl")
"""What files of flat indexes begin with: by inner product, by distance, by another metric."""

VectorStream = Callable[[], Iterator[FloatArray]]
"""Gives the vectors from the start, chunk by chunk [*, D], each time it is called."""


class VectorIndex:
    """An opened index. `open` maps it; nothing is read before it is searched."""

    def __init__(self, index: Any) -> None:
        self._index = index

    @classmethod
    def open(cls, path: Path) -> VectorIndex:
        """Open the index file at `path` memory-mapped.

        Raises:
            InputError: missing, or no FAISS index.
        """
        import faiss

        if not path.is_file():
            raise InputError(
                f"There is no index file {path}; put the .faiss file of the knowledge source there, or give it to "
                "finetune, eval or ask as --index_path."
            )
        try:
            # The links of a graph are looked at, and what cannot be mapped is read.
            with activity("Opening the index"):
                return cls(faiss.read_index(str(path), faiss.IO_FLAG_MMAP_IFC | faiss.IO_FLAG_READ_ONLY))
        except RuntimeError as error:
            raise InputError(f"{path} is not a FAISS index; build it again with ragstone build-knowledge.") from error

    @property
    def faiss_index(self) -> Any:
        """The FAISS index itself."""
        return self._index

    def __len__(self) -> int:
        return int(self._index.ntotal)

    @property
    def dimension(self) -> int:
        return int(self._index.d)

    @property
    def is_inner_product(self) -> bool:
        import faiss

        return bool(self._index.metric_type == faiss.METRIC_INNER_PRODUCT)

    def matrix(self) -> FloatArray | None:
        """All its vectors [n, D] as a view of the map, if it is a flat index; None if it is another."""
        import faiss

        index: Any = faiss.downcast_index(self._index)
        # Others that are called flat keep their vectors in another order.
        if type(index) not in (faiss.IndexFlat, faiss.IndexFlatIP, faiss.IndexFlatL2):
            return None
        return faiss.rev_swig_ptr(index.get_xb(), index.ntotal * index.d).reshape(index.ntotal, index.d)

    def search(self, queries: FloatArray, n: int) -> tuple[FloatArray, IntArray]:
        """Scores [B, N] and ids [B, N] of the nearest vectors to `queries` [B, D], ids -1 where there are fewer."""
        if len(queries) == 0:
            return nothing_found(0, n)
        with matrix_products():
            return self._searcher.search(np.ascontiguousarray(queries, dtype=np.float32), n)

    @cached_property
    def _searcher(self) -> Searcher:
        """FAISS, or what does the same in less time where the index is flat."""
        matrix = self.matrix() if self.is_inner_product else None
        if matrix is None:
            searcher: Searcher = self._index
            return searcher
        from ragstone.index.exact_range import ExactRange

        return ExactRange([matrix], 0)


def is_flat(path: Path) -> bool:
    """Whether the index file at `path` is a flat one, whose `matrix` there is; looks at its first bytes alone."""
    with path.open("rb") as file:
        return file.read(4) in FLAT_KINDS


def build_index(vectors: VectorStream, count: int, dimension: int, factory: str, path: Path) -> None:
    """Build the index that `factory` describes over `count` vectors and write it to `path`.

    A flat index is written as it streams by. Others are held in memory until they are complete: an HNSW index with
    its vectors, a compressed one with its codes.

    Raises:
        InputError: FAISS does not know the factory string or cannot train it on so few vectors.
    """
    if factory == "Flat":
        _write_flat(vectors, count, dimension, path)
        return
    import faiss

    index = empty_index(factory, dimension)
    _widen_search(index)
    _reserve(index, count)
    try:
        if not index.is_trained:
            with activity(f"Training the index {factory}"):
                index.train(_sample(vectors, count, min(count, TRAINING_VECTORS)))
        _add(index, vectors, count)
    except RuntimeError as error:
        raise InputError(too_few(factory, count)) from error
    with activity("Writing the index"):
        faiss.write_index(index, str(path))


def extend_index(old: Path, vectors: VectorStream, count: int, path: Path, was_read: Callable[[], None]) -> bool:
    """Write the index `old` with `count` more `vectors` to `path`, without building what it has already.

    `was_read` is called when `old` was read: it may raise where another file stands in its place by then.

    Returns:
        Whether that was possible: an HNSW graph grows as it was built. An index that was trained fits the vectors of
        its training, and a flat one is written anew as fast.
    """
    import faiss

    if not isinstance(faiss.downcast_index(VectorIndex.open(old).faiss_index), faiss.IndexHNSWFlat):
        return False
    with activity("Reading the index"):
        index = faiss.read_index(str(old))
    was_read()
    _widen_search(index)
    _add(index, vectors, count)
    with activity("Writing the index"):
        faiss.write_index(index, str(path))
    return True


def _add(index: Any, vectors: VectorStream, count: int) -> None:
    with progress_bar("Indexing", count) as bar:
        for chunk in vectors():
            # Small steps, so that the bar moves while an HNSW graph grows.
            for start in range(0, len(chunk), 1024):
                part = chunk[start : start + 1024]
                index.add(np.ascontiguousarray(part))
                bar.advance(len(part))


def _reserve(index: Any, count: int) -> None:
    """Let an HNSW index have the memory that `count` vectors take, once.

    Otherwise it doubles what it has when that is full, and holds both while it copies.
    """
    import faiss

    graph: Any = faiss.downcast_index(index)
    if not isinstance(graph, faiss.IndexHNSW):
        return
    storage: Any = faiss.downcast_index(graph.storage)
    links: Any = graph.hnsw
    sizes = ((storage.codes, storage.code_size), (links.neighbors, links_per_node(graph)))
    # FAISS's vectors have no other way to say it: they keep their memory when they shrink.
    for values, size in sizes:
        values.resize(count * size)
        values.resize(0)


def _widen_search(index: Any) -> None:
    """Search deeper than FAISS's defaults, wherever in a composed index the search takes place."""
    import faiss

    inner = faiss.downcast_index(index)
    if isinstance(inner, faiss.IndexPreTransform):
        _widen_search(inner.index)
    elif isinstance(inner, faiss.IndexRefine):
        _widen_search(inner.base_index)
    elif isinstance(inner, faiss.IndexHNSW):
        inner.hnsw.efConstruction = EF_CONSTRUCTION
        inner.hnsw.efSearch = EF_SEARCH
    elif isinstance(inner, faiss.IndexIVF):
        inner.nprobe = min(PROBES, inner.nlist)
        if isinstance(inner, faiss.IndexIVFPQ):
            # It takes most of the training, for a way of searching that is not used here.
            inner.do_polysemous_training = False  # type: ignore[attr-defined]


def _sample(vectors: VectorStream, count: int, size: int) -> FloatArray:
    """`size` of the `count` vectors, evenly spread, in one pass."""
    if size >= count:
        return np.concatenate(list(vectors()))
    rows = np.linspace(0, count - 1, size).astype(np.int64)
    parts, offset = [], 0
    for chunk in vectors():
        inside = rows[(rows >= offset) & (rows < offset + len(chunk))] - offset
        parts.append(chunk[inside])
        offset += len(chunk)
    return np.concatenate(parts)


def _write_flat(vectors: VectorStream, count: int, dimension: int, path: Path) -> None:
    """Write a flat index without holding it: FAISS's own empty file, its two counts patched, then the vectors.

    The file of an IndexFlatIP is a header (fourcc, dimension as int32, count as int64, ...) that ends with the number
    of bytes/4 of the vectors as uint64; the vectors follow as they are.
    """
    import faiss

    header = bytearray(faiss.serialize_index(faiss.IndexFlatIP(dimension)).tobytes())
    struct.pack_into("<q", header, 8, count)
    struct.pack_into("<Q", header, len(header) - 8, count * dimension)
    written = 0
    with path.open("wb") as file, progress_bar("Indexing", count) as bar:
        file.write(header)
        for chunk in vectors():
            file.write(np.ascontiguousarray(chunk, dtype="<f4").data)
            written += len(chunk)
            bar.advance(len(chunk))
    if written != count:
        raise RuntimeError(f"{written} vectors came instead of {count}")
