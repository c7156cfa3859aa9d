"""A knowledge source: passages, and an index over their vectors, their words or both, opened without loading them."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from ragstone.encoders.published import PASSAGE_ENCODERS, unlike
from ragstone.encoders.record import EncoderRecord
from ragstone.errors import InputError
from ragstone.index.bm25 import Bm25Index
from ragstone.index.vector_index import VectorIndex
from ragstone.knowledge.manifest import FILE_NAME, Manifest, checksum
from ragstone.knowledge.no_vectors import no_vectors
from ragstone.knowledge.row_store import open_store
from ragstone.knowledge.wiki_dpr import encoder_of
from ragstone.replacement import read_one_version
from ragstone.types import FloatArray

PASSAGES_NAME = "my_knowledge_dataset"
INDEX_NAME = "my_knowledge_dataset_hnsw_index.faiss"
BM25_NAME = "my_knowledge_dataset_bm25"
"""Folder of the index over words."""


@dataclass(frozen=True)
class SourceInfo:
    """What a model needs to know of a source, which may be open in another process or on another host."""

    folder: str
    passages_path: str
    """The passages folder, absolute."""
    index_path: str | None
    """The index file, absolute; None where there are no vectors."""
    passages: int
    """How many it holds."""
    dimension: int
    """D of its vectors; 0 where there are none."""
    fingerprint: str
    """See KnowledgeSource.fingerprint."""
    version: str | None
    """See KnowledgeSource.version."""
    encoder: str | None
    """Name of the passage encoder that built it; None where that is not recorded."""
    encoder_fingerprint: str | None
    encoder_weights: str | None = None
    """See EncoderRecord, as for the next."""
    encoder_settings: dict[str, Any] | None = None

    @property
    def content(self) -> list[Any]:
        """What is the same wherever one version of a source is opened, on whichever host."""
        return [self.version, self.passages, self.dimension]

    def refuse_other_encoder(
        self,
        dimension: int,
        passage_encoder: EncoderRecord | None,
        model_name: str,
        question_encoder: EncoderRecord | None = None,
    ) -> None:
        """Refuse a question encoder whose passage encoder did not build this source.

        Args:
            dimension: D of the question encoder's vectors.
            passage_encoder: the passage encoder that it belongs to, None where that is not known.
            model_name: what the message calls the model.
            question_encoder: the question encoder as it was before fine-tuning. Where the source was built by the same
                model, the settings in this record must be those of the source.

        Raises:
            InputError: names both encoders, and in what they differ.
        """
        if dimension != self.dimension:
            raise InputError(
                f"{model_name} makes question vectors of {dimension} dimensions, but the knowledge source "
                f"{self.folder} has {self.dimension}; build the source with the passage encoder of the model."
            )
        if passage_encoder is None or not self.encoder_fingerprint:
            self._refuse_by_name(passage_encoder, model_name, question_encoder)
        if not self.encoder_fingerprint:
            return
        built = EncoderRecord(self.encoder_fingerprint, self.encoder, self.encoder_weights, self.encoder_settings)
        if passage_encoder is not None and passage_encoder.fingerprint != built.fingerprint:
            differences = built.differences(passage_encoder)
            reason = f"; they differ in {', '.join(differences)}" if differences else ""
            name = f" {passage_encoder.name}" if passage_encoder.name else ""
            raise InputError(
                f"The knowledge source {self.folder} was built with the passage encoder {self.encoder} "
                f"(fingerprint {built.fingerprint}), but {model_name} belongs to another one{name} "
                f"(fingerprint {passage_encoder.fingerprint}){reason}; build the source with that one."
            )
        if passage_encoder is None and question_encoder is not None and question_encoder.weights == built.weights:
            differences = built.differences(question_encoder)
            if differences:
                raise InputError(
                    f"The knowledge source {self.folder} was built with {self.encoder}, as was {model_name}, but they "
                    f"differ in {', '.join(differences)}; give consolidate the --pooling and --normalize that "
                    "build-knowledge was given."
                )

    def _refuse_by_name(
        self, passage_encoder: EncoderRecord | None, model_name: str, question_encoder: EncoderRecord | None
    ) -> None:
        """What is left where fingerprints cannot be compared; only DPR's own encoders are known by name."""
        if self.encoder is None or self.encoder not in PASSAGE_ENCODERS.values():
            return
        reason = unlike(self.encoder, passage_encoder, question_encoder)
        if reason is not None:
            raise InputError(
                f"The vectors of the knowledge source {self.folder} are those of {self.encoder}, but {model_name} "
                f"{reason}; take a source of its own passage encoder, or, if it was trained for these vectors, join it "
                f"again with ragstone consolidate --passage_encoder_name_or_path {self.encoder}."
            )


@dataclass(frozen=True)
class Indexes:
    """What a source can be searched by."""

    vectors: bool
    words: bool


def find_indexes(passages_path: Path) -> Indexes:
    """What the source at `passages_path` (see KnowledgeSource) can be searched by, without opening its indexes.

    Raises:
        InputError: no knowledge source.
    """
    folder = passages_folder(passages_path)
    return Indexes(open_store(folder).has_vectors, (folder.parent / BM25_NAME).is_dir())


def passages_folder(passages_path: Path) -> Path:
    """The passages folder that `passages_path` is, or that is in it.

    Raises:
        InputError: there is none.
    """
    if (passages_path / PASSAGES_NAME).is_dir():
        return passages_path / PASSAGES_NAME
    if not passages_path.is_dir():
        raise InputError(f"There is no knowledge source {passages_path}; make one with ragstone build-knowledge.")
    return passages_path


class KnowledgeSource:
    """An opened source. Everything is memory-mapped: opening costs no memory worth speaking of."""

    def __init__(self, passages_path: Path, index_path: Path | None = None) -> None:
        """Open a source.

        Args:
            passages_path: the folder that build-knowledge wrote, the passages folder in it, or one of parquet files.
            index_path: the index file; found beside the passages where it is not given.

        Raises:
            InputError: no knowledge source, or one whose parts do not belong together.
        """
        passages_path = passages_folder(passages_path)
        self.folder = passages_path.parent
        self.index_path = index_path or self.folder / INDEX_NAME
        # An update may put another version in the source's place while it is opened.
        read_one_version(self.folder, lambda: self._open(passages_path))

    def _open(self, passages_path: Path) -> None:
        self.store = open_store(passages_path)
        self._index = VectorIndex.open(self.index_path) if self.store.has_vectors else None
        self.manifest = Manifest.load(self.folder) if passages_path.name == PASSAGES_NAME else None
        self.version = None if self.manifest is None else checksum(self.folder / FILE_NAME)
        """The checksum of its manifest, which an update changes and a copy on another host does not; None without."""
        self._fingerprint = self._fingerprint_of_files()
        self._check()

    def __len__(self) -> int:
        """How many passages it holds."""
        return len(self.store)

    @property
    def dimension(self) -> int:
        """D of its vectors; 0 where there are none."""
        return self.store.dimension

    @property
    def has_vectors(self) -> bool:
        """Whether it can be searched by vectors; else by words alone."""
        return self.store.has_vectors

    @property
    def index(self) -> VectorIndex:
        """The index over the vectors.

        Raises:
            InputError: there are none.
        """
        if self._index is None:
            raise InputError(no_vectors(self.folder))
        return self._index

    @property
    def has_bm25(self) -> bool:
        """Whether it can be searched by words."""
        return (self.folder / BM25_NAME).is_dir()

    @cached_property
    def bm25(self) -> Bm25Index:
        """The index over the words, opened when it is first asked for.

        Raises:
            InputError: there is none, or it is damaged or another source's.
        """
        index = Bm25Index.open(self.folder / BM25_NAME)
        if len(index) != len(self):
            raise InputError(
                f"The BM25 index {index.path} holds {len(index)} passages, but {self.store.folder} has {len(self)}; "
                "build the knowledge source again."
            )
        self.refuse_updated()
        return index

    def refuse_updated(self) -> None:
        """Check that what was just read by a path of the source is of the version that is open.

        Raises:
            InputError: another version stands in its place by now.
        """
        if self._fingerprint_of_files() != self._fingerprint:
            raise InputError(f"{self.folder} was updated since it was opened; open it again.")

    def info(self) -> SourceInfo:
        """What a model needs to know of it."""
        return SourceInfo(
            folder=str(self.folder),
            passages_path=str(self.store.folder.resolve()),
            index_path=str(self.index_path.resolve()) if self.has_vectors else None,
            passages=len(self),
            dimension=self.dimension,
            fingerprint=self.fingerprint(),
            version=self.version,
            encoder=encoder_of(self.store.folder) if self.manifest is None else self.manifest.encoder,
            encoder_fingerprint=None if self.manifest is None else self.manifest.encoder_fingerprint,
            encoder_weights=None if self.manifest is None else self.manifest.encoder_weights,
            encoder_settings=None if self.manifest is None else self.manifest.encoder_settings,
        )

    def vectors(self, first: int, last: int) -> list[FloatArray]:
        """The vectors of rows `first` to before `last`, in order, as views [*, D] of the map.

        Those of a flat index, which is one view, or else those beside the passages, in many.
        """
        matrix = self.index.matrix()
        if matrix is not None:
            return [matrix[first:last]]
        return list(self.store.vector_chunks(first, last))

    def fingerprint(self) -> str:
        """A short text that differs between sources with different content, and changes when one is built anew.

        It is of the source as it was opened, whatever stands in its place now.
        """
        return self._fingerprint

    def _fingerprint_of_files(self) -> str:
        """A manifest stands for the files that it lists; any others are told apart by name, size and time of change.

        Reading those would take minutes.
        """
        listed = self.manifest is not None and self.index_path.resolve() == (self.folder / INDEX_NAME).resolve()
        files = [] if self.manifest else sorted(self.store.folder.iterdir())
        files += [self.index_path] if self.has_vectors and not listed else []
        digest = hashlib.sha256(b"" if self.manifest is None else checksum(self.folder / FILE_NAME).encode())
        for path in files:
            status = path.stat()
            digest.update(f"{path.name}:{status.st_size}:{status.st_mtime_ns}\n".encode())
        return digest.hexdigest()[:32]

    def _check(self) -> None:
        if self._index is None:
            return
        if len(self.index) != len(self.store):
            raise InputError(
                f"The index {self.index_path} holds {len(self.index)} vectors, but {self.store.folder} has "
                f"{len(self.store)} passages; give an index that was built from these passages."
            )
        if self.index.dimension != self.dimension:
            raise InputError(
                f"The index {self.index_path} has {self.index.dimension} dimensions, but the vectors in "
                f"{self.store.folder} have {self.dimension}; give an index that was built from these passages."
            )
