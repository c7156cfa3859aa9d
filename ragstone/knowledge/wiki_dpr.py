"""wiki_dpr: Wikipedia of 2018 in 21 million passages with DPR's vectors, which the published RAG checkpoints search.

It lies in the cache of the hub's own client (HF_HUB_CACHE, by default ~/.cache/huggingface/hub), in its layout:
whatever downloaded it, it is found there.
"""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from ragstone.encoders.published import PASSAGE_ENCODERS
from ragstone.errors import InputError
from ragstone.knowledge.hub_cache import HubCache

REPOSITORY = "facebook/wiki_dpr"
NAMES = ("wiki_dpr", REPOSITORY)
"""What a checkpoint's config calls it."""
LICENCE = "CC BY-NC 4.0, which forbids commercial use (https://creativecommons.org/licenses/by-nc/4.0/)"

Embeddings = Literal["nq", "multiset"]
"""Whose vectors: of DPR's encoders trained on Natural Questions, or on several sets of questions."""
PUBLISHED_INDEXES = {"exact": "HNSW128_SQ8", "compressed": "IVF4096_HNSW128_PQ128"}
"""--index_name in the words of the reference, and what it is in the words of FAISS."""


def passages_folder(embeddings: str) -> str:
    """The passages' folder within the repository."""
    return f"data/psgs_w100/{embeddings}"


def encoder_of(folder: Path) -> str | None:
    """The encoder that made the vectors of a passages folder, wherever it was downloaded to; None for any other."""
    return PASSAGE_ENCODERS.get(folder.name) if folder.parent.name == Path(passages_folder("")).name else None


def index_file(embeddings: str, index: str) -> str:
    """The index's path within the repository."""
    return f"index/psgs_w100.{embeddings}.{PUBLISHED_INDEXES[index]}-IP-train.faiss"


def download_command(embeddings: str, index: str) -> str:
    """What downloads it."""
    return f"ragstone download-knowledge wiki_dpr --embeddings {embeddings} --index {index}"


def find_wiki_dpr(index: str, embeddings: str = "nq") -> tuple[Path, Path]:
    """The folder of passages and the index file, which were downloaded.

    Args:
        index: exact or compressed.
        embeddings: those that the published RAG checkpoints were trained with, where not said.

    Raises:
        InputError: they were not; says what downloads them.
    """
    for snapshot in HubCache(REPOSITORY).snapshots():
        passages, path = snapshot / passages_folder(embeddings), snapshot / index_file(embeddings, index)
        if passages.is_dir() and path.is_file():
            return passages, path
    raise InputError(
        f"The index {index!r} of wiki_dpr is not in the hub's cache on this machine; download it with "
        f"{download_command(embeddings, index)}, or give --passages_path the folder of a knowledge source."
    )
