"""ragstone update-knowledge: documents added to a knowledge source and deleted from it, in one step for its readers."""

from __future__ import annotations

from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from ragstone.arithmetic import Precision
from ragstone.data.lines import read_lines
from ragstone.errors import InputError
from ragstone.importing import importing
from ragstone.index.factory import refuse_few_links
from ragstone.knowledge.documents import find_files
from ragstone.output import new_folder
from ragstone.replacement import new_version
from ragstone.settings import save_settings

if TYPE_CHECKING:
    from ragstone.encoders.text_encoder import TextEncoder
    from ragstone.knowledge.manifest import Manifest
    from ragstone.knowledge.update import UpdatePlan


@dataclass(frozen=True)
class UpdateKnowledgeSettings:
    passages_path: Path = field(metadata={"positional": True})
    """Folder of the knowledge source; may be given without --passages_path before it."""
    add_csv_path: list[str] | None = None
    """Documents to add: files, folders or globs, like --csv_path of build-knowledge."""
    replace: bool = False
    """Let the added documents replace those with the same titles."""
    delete_titles: list[str] | None = None
    """Titles of documents to delete."""
    delete_titles_path: Path | None = None
    """File with titles of documents to delete, one per line."""
    output_dir: Path | None = None
    """Write the updated source here, new or empty, and leave the old one as it is."""
    dpr_ctx_encoder_model_name: str | None = None
    """Where the passage encoder is now, if not where the source says, or if it does not say; it must be the one that
    built the source."""
    index: str | None = None
    """auto, flat, hnsw, ivfpq or any FAISS factory string; the source's own by default."""
    m: int = 128
    """Links per node, where --index makes an hnsw one."""
    batch_size: int = 64
    """Passages embedded at once."""
    precision: Precision = "auto"
    """Arithmetic of the encoder; auto is bf16 where the hardware has it."""

    def __post_init__(self) -> None:
        for name in ("m", "batch_size"):
            if getattr(self, name) < 1:
                raise InputError(f"--{name} is {getattr(self, name)}, but must be at least 1.")
        if self.index is not None:
            refuse_few_links(self.index, self.m)
        if self.replace and not self.add_csv_path:
            raise InputError("--replace needs --add_csv_path, the documents that take the place of others.")
        if not (self.add_csv_path or self.delete_titles or self.delete_titles_path or self.index):
            raise InputError(
                "There is nothing to change; give --add_csv_path, --delete_titles, --delete_titles_path or --index."
            )


@dataclass(frozen=True)
class UpdatedKnowledge:
    """What was changed."""

    folder: Path
    manifest: Manifest
    added: int
    """Passages that are new."""
    deleted: int
    """Passages that are gone."""


def update_knowledge(settings: UpdateKnowledgeSettings) -> UpdatedKnowledge:
    """Add documents to a knowledge source and delete others, without embedding the rest again."""
    folder = _source_folder(settings.passages_path)
    files = tuple(find_files(settings.add_csv_path, "--add_csv_path")) if settings.add_csv_path else ()
    titles = _titles(settings)
    with _new_source(settings, folder) as new:
        plan = _plan(settings, files, titles)
        from ragstone.knowledge.update import update_knowledge_source

        updated = update_knowledge_source(folder, new, plan, lambda manifest: _encoder(settings, manifest))
        save_settings(settings, new / "update.yaml")
    return UpdatedKnowledge(settings.output_dir or folder, updated.manifest, updated.added, updated.deleted)


def _source_folder(path: Path) -> Path:
    from ragstone.knowledge.source import PASSAGES_NAME

    folder = path.parent if path.name == PASSAGES_NAME else path
    if not (folder / PASSAGES_NAME).is_dir():
        raise InputError(f"There is no knowledge source {path}; make one with ragstone build-knowledge.")
    return folder


def _titles(settings: UpdateKnowledgeSettings) -> tuple[str, ...]:
    titles = list(settings.delete_titles or [])
    if settings.delete_titles_path is not None:
        listed = [line for line in read_lines(settings.delete_titles_path) if line]
        if not listed:
            raise InputError(f"{settings.delete_titles_path} holds no titles; give one on each line.")
        titles += listed
    return tuple(titles)


def _new_source(settings: UpdateKnowledgeSettings, folder: Path) -> AbstractContextManager[Path]:
    """Where the updated source is written until it is whole."""
    return new_version(folder) if settings.output_dir is None else new_folder(settings.output_dir, "--output_dir")


def _plan(settings: UpdateKnowledgeSettings, files: tuple[Path, ...], titles: tuple[str, ...]) -> UpdatePlan:
    with importing():
        from ragstone.encoders.precision import best_device, compute_dtype
        from ragstone.knowledge.update import UpdatePlan

    # Refuses a precision that the device has not, before the encoder is loaded.
    compute_dtype(best_device(), settings.precision)
    return UpdatePlan(
        add=files,
        delete_titles=titles,
        replace=settings.replace,
        index=settings.index,
        m=settings.m,
        batch_size=settings.batch_size,
        precision=settings.precision,
    )


def _encoder(settings: UpdateKnowledgeSettings, manifest: Manifest) -> TextEncoder:
    """The passage encoder that the manifest names, with the settings that it records."""
    from ragstone.encoders.load import load_encoder
    from ragstone.encoders.precision import best_device

    recorded = manifest.encoder_settings or {}
    name = settings.dpr_ctx_encoder_model_name or manifest.encoder
    if name is None:
        raise InputError(
            f"{settings.passages_path} does not say which encoder made its vectors; name it with "
            "--dpr_ctx_encoder_model_name."
        )
    encoder = load_encoder(
        name,
        "passage",
        pooling=recorded.get("pooling"),
        normalize=recorded.get("normalize"),
        prompt=recorded.get("prompt"),
        max_length=recorded.get("max_length"),
        pooling_remedy="give the encoder that built the source to --dpr_ctx_encoder_model_name",
    )
    return encoder.to(best_device())


def show(result: UpdatedKnowledge) -> None:
    """Print what was changed, and what the source is now."""
    manifest, statistics = result.manifest, result.manifest.statistics
    print(f"knowledge source  {result.folder}")
    print(f"changes           {result.added:,} passages added, {result.deleted:,} deleted")
    print(f"documents         {manifest.documents:,}")
    print(f"passages          {manifest.passages:,}")
    if "bm25_words" in statistics:
        print(f"BM25              {statistics['bm25_words']:,} words")
    print(f"size              {statistics['bytes'] / 2**20:,.1f} MiB")
    if not manifest.dimension:
        print(f"time              {statistics['seconds']:,.1f} s")
        return
    print(f"time              {statistics['seconds']:,.1f} s ({statistics['seconds_embedding']:,.1f} s embedding)")
    print(f"index             {manifest.index}, {manifest.metric.replace('_', ' ')}")
    print(f"recall@5, @20     {statistics['recall@5']:.3f}, {statistics['recall@20']:.3f} against exact search")
    print(f"search            {statistics['queries_per_second']:,.0f} queries per second")
