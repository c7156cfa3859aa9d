"""An index before it has vectors: made from its FAISS factory string, or refused before there is anything to lose."""

from __future__ import annotations

import re
from typing import Any

from ragstone.errors import InputError
from ragstone.memory import memory

TRAINING_VECTORS = 1_000_000
"""Vectors that an index is trained on, at most: a larger corpus is sampled."""

_UNLINKED = re.compile(r"HNSW0*[01](?!\d)")
_UNPARSED = "could not parse"
"""What FAISS says of a string that names no index at any dimension."""
_SOME_DIMENSION = 384


def empty_index(factory: str, dimension: int) -> Any:
    """The FAISS index over inner products that `factory` describes, without vectors.

    Raises:
        InputError: FAISS does not know the factory string for so many dimensions, or cannot fill what it describes.
    """
    import faiss

    # FAISS makes such a graph, and crashes over the first vectors that it is given.
    if _UNLINKED.search(factory):
        raise InputError(f"--index {factory!r} has a graph of fewer than 2 links per node; give at least HNSW2.")
    try:
        index = faiss.index_factory(dimension, factory, faiss.METRIC_INNER_PRODUCT)
    except RuntimeError as error:
        raise InputError(_no_factory_string(factory, f" for {dimension} dimensions")) from error
    if isinstance(faiss.downcast_index(index), faiss.IndexIDMap):
        raise InputError(f"--index {factory!r} gives vectors other numbers than their passages have; leave IDMap out.")
    return index


def refuse_unparsed(factory: str) -> None:
    """Refuse what is a factory string at no dimension: all that can be told before an encoder is loaded.

    Raises:
        InputError: names the string.
    """
    import faiss

    try:
        faiss.index_factory(_SOME_DIMENSION, factory, faiss.METRIC_INNER_PRODUCT)
    except RuntimeError as error:
        if _UNPARSED in str(error):
            raise InputError(_no_factory_string(factory, "")) from error


def refuse_too_few(index: Any, factory: str, count: int) -> None:
    """Refuse an empty index that cannot be trained on `count` vectors, as it has more centroids.

    Raises:
        InputError: names the factory string and the count.
    """
    import faiss

    ivf = faiss.try_extract_index_ivf(index)
    quantizer = getattr(faiss.downcast_index(index if ivf is None else ivf), "pq", None)
    lists = 1 if ivf is None else ivf.nlist
    centroids = max(lists, 0 if quantizer is None else quantizer.ksub)
    if lists == 0 or centroids > min(count, TRAINING_VECTORS):
        raise InputError(too_few(factory, count))


def too_few(factory: str, count: int) -> str:
    """The sentence that an index which cannot be trained is refused with."""
    return f"The index {factory} cannot be built over {count} vectors; use --index flat, or one with fewer centroids."


def links_per_node(graph: Any) -> int:
    """Links of an HNSW node: those of the lowest level, and about its part of the few above."""
    return int(graph.hnsw.nb_neighbors(0)) + 2


def refuse_beyond_memory(index: Any, factory: str, dimension: int, count: int) -> None:
    """Refuse an empty index that takes more memory over `count` vectors than this machine has.

    Raises:
        InputError: names both.
    """
    needed = count * _bytes_per_vector(index)
    if not index.is_trained:
        needed += 4 * dimension * min(count, TRAINING_VECTORS)
    total = memory().total
    if needed > total:
        raise InputError(
            f"The index {factory} over {count:,} vectors takes at least {needed / 2**30:.1f} GiB of memory until it is "
            f"complete, and this machine has {total / 2**30:.1f} GiB; take --index ivfpq, or flat, which takes none."
        )


def _bytes_per_vector(index: Any) -> int:
    """Bytes that an index keeps of each vector, at least; 0 of a kind that does not say."""
    import faiss

    inner: Any = faiss.downcast_index(index)
    if isinstance(inner, faiss.IndexPreTransform):
        return _bytes_per_vector(inner.index)
    if isinstance(inner, faiss.IndexRefine):
        return _bytes_per_vector(inner.base_index) + _bytes_per_vector(inner.refine_index)
    if isinstance(inner, faiss.IndexHNSW):
        return _bytes_per_vector(inner.storage) + 4 * links_per_node(inner)
    if isinstance(inner, faiss.IndexIVF):
        # A code, and the number of its vector.
        return int(inner.code_size) + 8
    try:
        return int(inner.sa_code_size())
    except RuntimeError:
        return 0


def _no_factory_string(factory: str, where: str) -> str:
    return (
        f"--index {factory!r} is not a FAISS factory string{where}; take auto, flat, hnsw, ivfpq or see FAISS's "
        "documentation of index_factory."
    )
