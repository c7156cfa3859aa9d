"""knowledge.json: what a knowledge source is made of, and a checksum for each of its files."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ragstone.encoders.record import EncoderRecord
from ragstone.errors import InputError
from ragstone.knowledge.row_store import RowStore
from ragstone.progress import track

FILE_NAME = "knowledge.json"


@dataclass(frozen=True)
class Manifest:
    """The record beside the passages and the index."""

    encoder: str | None
    """Folder or hub name of the passage encoder; None where there are no vectors, or nobody knows whose they are."""
    encoder_fingerprint: str | None
    """Hash of the passage encoder's weights and settings."""
    dimension: int
    """D of the vectors; 0 where there are none."""
    metric: str
    """inner_product, or cosine where all vectors have length one; bm25 where there are no vectors."""
    documents: int
    passages: int
    max_words: int
    index: str
    """FAISS factory string, or bm25."""
    files: dict[str, str]
    """Path within the folder to SHA-256."""
    statistics: dict[str, float]
    """What building took and gave: seconds, bytes, recall@5, recall@20, queries_per_second, bm25_words."""
    encoder_weights: str | None = None
    """Hash of the passage encoder's weights and vocabulary alone; None where that is not recorded, as the next."""
    encoder_settings: dict[str, Any] | None = None
    """What else makes its vectors: pooling, normalize, prompt, max_length, pair."""

    @property
    def encoder_record(self) -> EncoderRecord | None:
        """The passage encoder; None where it is not recorded."""
        if not self.encoder_fingerprint:
            return None
        return EncoderRecord(self.encoder_fingerprint, self.encoder, self.encoder_weights, self.encoder_settings)

    def save(self, folder: Path) -> None:
        text = json.dumps(dataclasses.asdict(self), indent=2, ensure_ascii=False)
        (folder / FILE_NAME).write_text(text + "\n", encoding="utf-8")

    @classmethod
    def load(cls, folder: Path) -> Manifest | None:
        """The manifest in `folder`; None where there is none (a source of the reference's script).

        Raises:
            InputError: it is damaged.
        """
        path = folder / FILE_NAME
        if not path.is_file():
            return None
        try:
            values: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
            fields = dataclasses.fields(cls)
            required = {field.name: values[field.name] for field in fields if field.default is dataclasses.MISSING}
            return cls(**({field.name: values.get(field.name, field.default) for field in fields} | required))
        except (ValueError, KeyError, TypeError) as error:
            raise InputError(f"{path} is damaged ({error}); build the knowledge source again.") from error


@dataclass(frozen=True)
class Origin:
    """What a source's files do not tell of themselves."""

    documents: int
    max_words: int
    encoder: EncoderRecord | None = None
    """What made the vectors; None where there are none, or nobody knows."""
    metric: str = "inner_product"
    """As in the manifest."""


def write_manifest(
    folder: Path,
    origin: Origin,
    store: RowStore,
    index: str,
    statistics: dict[str, float],
    began: float | None = None,
) -> Manifest:
    """Describe the source in `folder`, whose files are all there, in its knowledge.json.

    Args:
        folder: of the source.
        origin: see Origin.
        store: its passages.
        index: as in the manifest.
        statistics: those that its files do not tell.
        began: when the work on the source began, by time.perf_counter, where the seconds that it took are recorded.
    """
    paths = sorted(path for path in folder.rglob("*") if path.is_file())
    encoder = origin.encoder
    files = {str(path.relative_to(folder)): checksum(path) for path in track(paths, "Checksums")}
    seconds = {} if began is None else {"seconds": round(time.perf_counter() - began, 2)}
    manifest = Manifest(
        encoder=None if encoder is None else encoder.name,
        encoder_fingerprint=None if encoder is None else encoder.fingerprint,
        dimension=store.dimension,
        metric=origin.metric,
        documents=origin.documents,
        passages=len(store),
        max_words=origin.max_words,
        index=index,
        files=files,
        statistics={"bytes": sum(path.stat().st_size for path in paths), **seconds, **statistics},
        encoder_weights=None if encoder is None else encoder.weights,
        encoder_settings=None if encoder is None or encoder.settings is None else dict(encoder.settings),
    )
    manifest.save(folder)
    return manifest


def checksum(path: Path) -> str:
    """SHA-256 of a file, read in pieces."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
