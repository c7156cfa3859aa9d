"""ragstone import-knowledge: passages and vectors of DPR, Pyserini or Tevatron to a knowledge source."""

from __future__ import annotations

import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from ragstone.errors import InputError
from ragstone.importing import importing
from ragstone.index.factory import BY_SIZE, refuse_few_links, refuse_unknown_index
from ragstone.output import new_folder, refuse_used_folder
from ragstone.settings import save_settings

if TYPE_CHECKING:
    from ragstone.encoders.text_encoder import TextEncoder
    from ragstone.knowledge.imports import ImportPlan
    from ragstone.knowledge.manifest import Manifest


@dataclass(frozen=True)
class ImportKnowledgeSettings:
    output_dir: Path
    """Folder for the knowledge source; new or empty."""
    folder: Path | None = field(default=None, metadata={"positional": True})
    """Folder with a .tsv of passages and .npy or .pt files of vectors; may be given without --folder before it."""
    passages: Path | None = None
    """Passages: id, text and title on each line, with tabs between them, plain or .gz; default: the folder's .tsv."""
    vectors: list[Path] | None = None
    """Vectors in the order of the passages; default: all .npy or .pt files of the folder."""
    dpr_ctx_encoder_model_name: str | None = None
    """Passage encoder that made the vectors, if it is at hand: the source then refuses models of any other."""
    index: str = BY_SIZE
    """auto (flat up to 64 MiB of vectors, else hnsw), flat (exact), hnsw (fast), ivfpq (small) or a FAISS factory
    string."""
    m: int = 128
    """Links per node, where the index is an hnsw one."""

    def __post_init__(self) -> None:
        if self.m < 1:
            raise InputError(f"--m is {self.m}, but must be at least 1.")
        refuse_few_links(self.index, self.m)
        if self.folder is None and (self.passages is None or self.vectors is None):
            raise InputError("Give the folder with passages and vectors, or both --passages and --vectors.")
        if self.folder is not None and not self.folder.is_dir():
            raise InputError(f"There is no folder {self.folder}; give one with passages and vectors.")


@dataclass(frozen=True)
class ImportedKnowledge:
    """What was made."""

    folder: Path
    manifest: Manifest


def import_knowledge(settings: ImportKnowledgeSettings) -> ImportedKnowledge:
    """Make a knowledge source from passages and vectors that were made elsewhere."""
    with importing():
        from ragstone.knowledge.imports import find_passages, find_vectors, import_source

    refuse_used_folder(settings.output_dir, "--output_dir")
    folder = settings.folder or Path()
    passages = settings.passages or find_passages(folder)
    vectors = settings.vectors or find_vectors(folder)
    plan = import_plan(settings.index, settings.m, settings.dpr_ctx_encoder_model_name)
    with new_folder(settings.output_dir, "--output_dir") as output:
        manifest = import_source(passages, vectors, output, plan)
        save_settings(settings, output / "settings.yaml")
    return ImportedKnowledge(settings.output_dir, manifest)


def import_plan(index: str, m: int, encoder_name: str | None) -> ImportPlan:
    """The plan that flags mean; an encoder that is named is opened.

    Raises:
        InputError: an index that FAISS does not know, or an unusable encoder.
    """
    from ragstone.encoders.load import load_encoder
    from ragstone.knowledge.imports import ImportPlan

    refuse_unknown_index(index)
    encoder: TextEncoder | None = None if encoder_name is None else load_encoder(encoder_name, "passage")
    return ImportPlan(index, m, encoder)


def show(result: ImportedKnowledge) -> None:
    """Print what was made."""
    manifest, statistics = result.manifest, result.manifest.statistics
    print(f"knowledge source  {result.folder}")
    print(f"passages          {manifest.passages:,} of at most {manifest.max_words} words")
    print(f"vectors           {manifest.dimension} dimensions, by {manifest.encoder or 'an encoder that is not named'}")
    print(f"index             {manifest.index}, {manifest.metric.replace('_', ' ')}")
    print(f"size              {statistics['bytes'] / 2**20:,.1f} MiB")
    print(f"time              {statistics['seconds']:,.1f} s")
    print(f"recall@5, @20     {statistics['recall@5']:.3f}, {statistics['recall@20']:.3f} against exact search")
    if manifest.encoder is None:
        print(
            "No encoder was named, so the only check on a model that searches this source is the length of its "
            "vectors; name the encoder with --dpr_ctx_encoder_model_name if it is at hand.",
            file=sys.stderr,
        )
