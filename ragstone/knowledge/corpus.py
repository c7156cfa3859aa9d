"""A corpus: document files as a stream of passages, read through once before hours go into embedding them."""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from ragstone.errors import InputError
from ragstone.knowledge.documents import megabytes, read_documents
from ragstone.knowledge.passages import split_document
from ragstone.progress import progress_bar
from ragstone.types import Passage


@dataclass(frozen=True)
class Corpus:
    """Document files that can be used, and what was found in them."""

    files: tuple[Path, ...]
    max_words: int
    """Words of a passage."""
    documents: int
    passages: int
    fingerprint: str
    """A hash of all passages: two corpora with the same one have the same passages in the same order."""

    def groups(self, size: int) -> Iterator[list[Passage]]:
        """The passages in order, `size` at a time, read from the files again.

        Raises:
            InputError: they are not what they were.
        """
        digest = _Digest()
        stream = (
            passage for document in read_documents(self.files) for passage in split_document(document, self.max_words)
        )
        while group := list(itertools.islice(stream, size)):
            digest.update(group)
            yield group
        if digest.fingerprint() != self.fingerprint:
            raise InputError(
                f"The documents changed while they were read (there were {self.passages} passages, now there are "
                f"{digest.passages}); build the knowledge source again."
            )


def read_corpus(files: Sequence[Path], max_words: int) -> Corpus:
    """Read all documents of `files` once.

    Raises:
        InputError: one cannot be used, or there is no text in any.
    """
    documents, digest = 0, _Digest()
    with progress_bar("Reading (MB)", megabytes(files)) as bar:
        for document in read_documents(files, bar):
            documents += 1
            digest.update(split_document(document, max_words))
    if not digest.passages:
        raise InputError(f"There is no text in {', '.join(map(str, files))}; give documents that have some.")
    return Corpus(tuple(files), max_words, documents, digest.passages, digest.fingerprint())


class _Digest:
    """Counts passages and hashes them."""

    def __init__(self) -> None:
        self.passages = 0
        self._hash = hashlib.sha256()

    def update(self, passages: Iterator[Passage] | list[Passage]) -> None:
        for passage in passages:
            self.passages += 1
            # A repr shows where the title ends.
            self._hash.update(repr((passage.title, passage.text)).encode())

    def fingerprint(self) -> str:
        return self._hash.hexdigest()[:32]
