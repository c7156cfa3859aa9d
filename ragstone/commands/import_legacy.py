"""ragstone import-legacy: an old DPR index, which transformers calls legacy, to a knowledge source."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from ragstone.commands.import_knowledge import ImportedKnowledge, import_plan
from ragstone.commands.import_knowledge import show as show
from ragstone.errors import InputError
from ragstone.importing import importing
from ragstone.index.factory import BY_SIZE, refuse_few_links
from ragstone.output import new_folder, refuse_used_folder
from ragstone.settings import save_settings


@dataclass(frozen=True)
class ImportLegacySettings:
    folder: Path = field(metadata={"positional": True})
    """Folder with psgs_w100.tsv.pkl, *.index.dpr and *.index_meta.dpr; may be given without --folder before it."""
    output_dir: Path | None = None
    """Folder for the knowledge source; default: ragstone in the old folder, where --index_name legacy looks for it."""
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
        if not self.folder.is_dir():
            raise InputError(f"There is no folder {self.folder}; give one with an old index.")


def import_legacy(settings: ImportLegacySettings) -> ImportedKnowledge:
    """Convert an old DPR index once, so that nothing ever has to be unpickled again.

    Its pickles are read by a process of its own that takes plain data only.
    """
    with importing():
        from ragstone.knowledge.legacy import CONVERTED_NAME, convert_legacy, find_legacy_files

    output_dir = settings.output_dir or settings.folder / CONVERTED_NAME
    refuse_used_folder(output_dir, "--output_dir")
    files = find_legacy_files(settings.folder)
    plan = import_plan(settings.index, settings.m, settings.dpr_ctx_encoder_model_name)
    with new_folder(output_dir, "--output_dir") as output:
        manifest = convert_legacy(files, output, plan)
        save_settings(settings, output / "settings.yaml")
    return ImportedKnowledge(output_dir, manifest)
