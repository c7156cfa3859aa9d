"""A part of a knowledge source, searched exactly."""

from __future__ import annotations

import socket
from pathlib import Path

from ragstone.errors import InputError
from ragstone.index.searcher import Searcher
from ragstone.index.vector_index import is_flat
from ragstone.knowledge.row_store import RowStore
from ragstone.knowledge.source import KnowledgeSource
from ragstone.memory import memory
from ragstone.retrieval.location import IndexDevice

REMEDY = (
    "give more hosts a part each (--index_shards), or search the source's own index, without --index_shards and "
    "--index_device"
)


def bytes_to_hold(store: RowStore, index_path: Path) -> int:
    """Bytes of memory that exact search of all vectors takes; 0 where the index or the passages have them mapped."""
    if store.maps_vectors or is_flat(index_path):
        return 0
    return 4 * store.dimension * len(store)


def exact_part(
    source: KnowledgeSource, part: int, parts: int, device: IndexDevice, workers_here: int = 1
) -> Searcher | None:
    """What searches part number `part` of `parts` of a source exactly; None where the source's own index does.

    Args:
        source: an opened source.
        part: see above.
        parts: see above.
        device: where the vectors are.
        workers_here: processes of this host that hold such a part, this one included.

    Raises:
        InputError: the vectors cannot be mapped, and this host has no memory for them, or the GPU has none.
    """
    if parts == 1 and device == "cpu":
        return None
    import torch

    from ragstone.index.exact_range import ExactRange, bytes_on_device, divide

    first, last = divide(len(source), parts)[part]
    _refuse_beyond_memory(source, last - first, workers_here)
    chunks = source.vectors(first, last)
    gpu = torch.device("cuda", torch.cuda.current_device()) if device == "cuda" else None
    try:
        return ExactRange(chunks, first, gpu)
    except torch.OutOfMemoryError as error:
        needed = bytes_on_device(last - first, source.dimension)
        raise InputError(
            f"--index_device cuda: the vectors of {source.store.folder} take {needed / 2**30:.1f} GiB, more than "
            f"GPU {torch.cuda.current_device()} of {socket.gethostname()} has free; {REMEDY}."
        ) from error


def _refuse_beyond_memory(source: KnowledgeSource, rows: int, workers_here: int) -> None:
    needed = bytes_to_hold(source.store, source.index_path) * rows // len(source)
    here = memory()
    # What the others hold already is not free any more, so that all together are held against the whole.
    if needed > here.available or needed * workers_here > here.total:
        raise InputError(
            f"The vectors of {source.store.folder} cannot be mapped: exact search holds {needed / 2**30:.1f} GiB of "
            f"them in memory in each of {workers_here} processes on {socket.gethostname()}, which has "
            f"{here.total / 2**30:.1f} GiB, {here.available / 2**30:.1f} of them free; {REMEDY}."
        )
