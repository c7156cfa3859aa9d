"""ragstone verify: is a knowledge source or a checkpoint whole?"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from ragstone.errors import InputError
from ragstone.importing import importing

if TYPE_CHECKING:
    from ragstone.knowledge.verify import SourceReport
    from ragstone.model.verify import CheckpointReport


@dataclass(frozen=True)
class VerifySettings:
    path: Path = field(metadata={"positional": True})
    """Folder of a knowledge source or of a checkpoint; may be given without --path before it."""


def verify(settings: VerifySettings) -> SourceReport | CheckpointReport:
    """Check a knowledge source or a checkpoint, byte by byte where there are checksums."""
    path = settings.path
    if not path.is_dir():
        raise InputError(f"There is no folder {path}; verify takes a knowledge source or a checkpoint.")
    if (path / "config.json").is_file():
        with importing():
            from ragstone.model.verify import verify_checkpoint

        return verify_checkpoint(path)
    with importing():
        from ragstone.knowledge.manifest import FILE_NAME
        from ragstone.knowledge.source import PASSAGES_NAME
        from ragstone.knowledge.verify import verify_source

    if not any((path / name).exists() for name in (FILE_NAME, PASSAGES_NAME, "state.json")):
        raise InputError(
            f"{path} is neither a knowledge source (no {FILE_NAME}, {PASSAGES_NAME} or state.json) nor a checkpoint "
            "(no config.json); give the folder that build-knowledge, consolidate or finetune wrote."
        )
    return verify_source(path)


def show(result: SourceReport | CheckpointReport) -> None:
    """Print what was found."""
    from ragstone.knowledge.verify import SourceReport

    lines = _of_source(result) if isinstance(result, SourceReport) else _of_checkpoint(result)
    for name, text in lines:
        print(f"{name:<16}  {text}")
    print("sound")


def _of_source(report: SourceReport) -> list[tuple[str, str]]:
    manifest, recall = report.manifest, report.recall
    built = "" if manifest is None or manifest.encoder is None else f", by {manifest.encoder}"
    checked = f"{report.files} files as they were built" if report.files else "none to compare: no knowledge.json"
    lines = [
        ("knowledge source", str(report.folder)),
        ("checksums", checked),
        ("passages", f"{report.passages:,}" + (f", {report.without_text:,} without text" * bool(report.without_text))),
    ]
    if report.bm25_words is not None:
        lines.append(("BM25", f"{report.bm25_words:,} words"))
    if report.index is None:
        return [*lines, ("vectors", "none: it is searched by words")]
    return [
        *lines,
        ("vectors", f"{report.dimension} dimensions, all finite{built}"),
        ("index", report.index),
        ("recall@5, @20", f"{recall['recall@5']:.3f}, {recall['recall@20']:.3f} against exact search on a sample"),
        ("search", f"{recall['queries_per_second']:,.0f} queries per second"),
    ]


def _of_checkpoint(report: CheckpointReport) -> list[tuple[str, str]]:
    kind = "safetensors" if report.safetensors else "pickled, read as weights only; finetune saves safetensors"
    return [
        ("checkpoint", f"{report.folder} ({report.model_type})"),
        ("weights", f"{report.parameters:,} in {report.tensors} tensors, all finite"),
        ("files", f"{report.files}, {kind}"),
        *(
            (f"{part}", f"tokenizer of {tokens:,} tokens, {embeddings:,} embeddings")
            for part, (tokens, embeddings) in report.vocabularies.items()
        ),
    ]
