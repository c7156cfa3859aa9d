"""ragstone download-knowledge: wiki_dpr, the source of the published RAG checkpoints, from the hub."""

from __future__ import annotations

import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from ragstone.errors import InputError

if TYPE_CHECKING:
    from ragstone.knowledge.hub_cache import HubCache, HubListing

GB = 10**9


@dataclass(frozen=True)
class DownloadKnowledgeSettings:
    name: Literal["wiki_dpr"] = field(metadata={"positional": True})
    """The source; may be given without --name before it."""
    embeddings: Literal["nq", "multiset"] = "nq"
    """Vectors of DPR's encoders trained on Natural Questions (nq), which facebook/rag-* need, or on several sets."""
    index: Literal["exact", "compressed"] = "compressed"
    """exact finds more and is read from disk (38 GB); compressed is small (2.9 GB)."""
    accept_license: bool = False
    """Accept the licence, CC BY-NC 4.0 (no commercial use), without being asked."""


@dataclass(frozen=True)
class Downloaded:
    """What is there now."""

    passages_path: Path
    index_path: Path
    passages: int
    dimension: int
    files: int
    """Files whose checksums are the hub's."""
    bytes: int
    index_name: str
    embeddings: str
    encoder: str
    """What made the vectors."""


def download_knowledge(settings: DownloadKnowledgeSettings) -> Downloaded:
    """Download wiki_dpr into the hub's cache, check every file, and try it out.

    Size and licence are said first. What was downloaded before is checked, not fetched again; a file that a download
    stopped in goes on.
    """
    from ragstone.encoders.published import PASSAGE_ENCODERS
    from ragstone.knowledge.hub_cache import HubCache
    from ragstone.knowledge.source import KnowledgeSource
    from ragstone.knowledge.wiki_dpr import REPOSITORY, index_file, passages_folder

    cache = HubCache(REPOSITORY)
    names = passages_folder(settings.embeddings), index_file(settings.embeddings, settings.index)
    listing = cache.ask(names)
    _say(listing, cache)
    if not settings.accept_license:
        _ask_for_consent()
    passages_path, index_path = (cache.download(listing) / name for name in names)
    source = KnowledgeSource(passages_path, index_path)
    return Downloaded(
        passages_path=passages_path,
        index_path=index_path,
        passages=len(source),
        dimension=source.dimension,
        files=len(listing.files),
        bytes=listing.size,
        index_name=settings.index,
        embeddings=settings.embeddings,
        encoder=PASSAGE_ENCODERS[settings.embeddings],
    )


def show(result: Downloaded) -> None:
    """Print where it is and how it is used."""
    print(f"passages     {result.passages:,} with vectors of {result.dimension} dimensions in {result.passages_path}")
    print(f"encoder      {result.encoder}")
    print(f"index        {result.index_path}")
    print(f"checksums    {result.files} files of {result.bytes / GB:.1f} GB, all as the hub lists them")
    if result.embeddings == "nq":
        print(f"use it with  --index_name {result.index_name}")
    else:
        print(f"use it with  --passages_path {result.passages_path} --index_path {result.index_path}")


def _say(listing: HubListing, cache: HubCache) -> None:
    """Size and licence, before anything is downloaded."""
    from ragstone.knowledge.wiki_dpr import LICENCE

    lines = [
        f"data set  {cache.repository}, {len(listing.files)} files of {listing.size / GB:.1f} GB",
        f"to come   {cache.missing(listing) / GB:.1f} GB, into {cache.folder}",
        f"licence   {LICENCE}",
    ]
    print("\n".join(lines), file=sys.stderr, flush=True)


def _ask_for_consent() -> None:
    if not sys.stdin.isatty():
        raise InputError("The licence has not been accepted; give --accept_license to accept it.")
    print("Do you accept the licence, and download? [y/N] ", end="", file=sys.stderr, flush=True)
    if sys.stdin.readline().strip().lower() not in ("y", "yes"):
        raise InputError("The licence was not accepted; nothing was downloaded.")
