"""DPR's retriever data: questions with passages that answer them and passages that do not.

The format is that of DPR's biencoder files (github.com/facebookresearch/DPR): one JSON array, plain or gzipped, of
entries with question, answers, positive_ctxs, negative_ctxs and hard_negative_ctxs. Files are read entry by entry,
so that memory does not grow with them. Knows nothing about tensors.
"""

from __future__ import annotations

import gzip
import os
import zlib
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, NamedTuple, cast

from ragstone.data.byte_stream import BrokenStream, CheckedStream
from ragstone.errors import InputError
from ragstone.progress import progress_bar

GZIP_MAGIC = b"\x1f\x8b"
MEGABYTE = 1e6


class Context(NamedTuple):
    """A passage as DPR's files hold it."""

    title: str
    text: str


@dataclass(frozen=True, slots=True)
class DprEntry:
    """A question with its passages."""

    number: int
    """Its place in the file, from 1."""
    question: str
    answers: tuple[str, ...]
    positives: tuple[Context, ...]
    """Passages that answer the question, best first."""
    negatives: tuple[Context, ...]
    """Passages of other questions."""
    hard_negatives: tuple[Context, ...]
    """Passages that look right but are not, hardest first."""


@dataclass(frozen=True, slots=True)
class RetrieverExample:
    """What one question contributes to the training of a retriever."""

    question: str
    positive: Context
    positive_keys: frozenset[int]
    """Hashes of all the question's positive contexts: none of them may count as wrong."""
    hard_negatives: tuple[Context, ...]


def read_dpr(path: Path) -> Iterator[DprEntry]:
    """Yield the entries of a DPR file, one in memory at a time.

    Raises:
        InputError: unreadable, no JSON array, cut off or no UTF-8 (names line and byte), or an entry that is not in
            DPR's format (names its number).
    """
    import ijson

    number = 0
    with _open(path) as (file, content), progress_bar(f"Reading {path.name} (MB)", _megabytes(file)) as bar:
        stream = CheckedStream(content)
        try:
            if not stream.starts_with(b"["):
                raise InputError(f"{path} does not begin with '['; give DPR's data, a JSON array of entries.")
            for number, value in enumerate(ijson.items(stream, "item", use_float=True), start=1):
                yield _entry(value, number, path)
                bar.move_to(file.tell() / MEGABYTE)
        except BrokenStream as error:
            raise InputError(f"{path}, {stream.place(error.offset)}: {error}.") from error
        except (EOFError, zlib.error, gzip.BadGzipFile) as error:
            raise InputError(
                f"{path} is a damaged or cut off gzip file (after entry {number}): {error}; download it again."
            ) from error
        except OSError as error:
            raise InputError(
                f"{path} cannot be read after entry {number}: {error.strerror or error}; copy or download it again."
            ) from error
        except ijson.JSONError as error:
            raise InputError(f"{path}, {_explain(error, stream, number + 1)}.") from error


def read_retriever_examples(paths: Iterable[Path], num_hard_negatives: int) -> Iterator[RetrieverExample]:
    """Yield what training needs of the files' entries: the first positive and the first hard negatives.

    Like DPR, fills up with ordinary negatives where an entry has no hard ones. A hard negative that is also one of the
    question's positives is dropped.

    Raises:
        InputError: as `read_dpr`, and for an entry without positive contexts or one whose passage has no text.
    """
    for path in paths:
        for entry in read_dpr(path):
            if not entry.positives:
                raise InputError(
                    f"{path}, entry {entry.number} ({entry.question[:60]!r}) has no positive context; "
                    "take it out: a retriever cannot learn from it."
                )
            keys = frozenset(map(hash, entry.positives))
            candidates = (c for c in entry.hard_negatives or entry.negatives if hash(c) not in keys)
            negatives = tuple(context for context, _ in zip(candidates, range(num_hard_negatives), strict=False))
            for context in (entry.positives[0], *negatives):
                if not context.text.strip():
                    raise InputError(
                        f"{path}, entry {entry.number} has a context without text ({context.title!r}); take it out."
                    )
            yield RetrieverExample(" ".join(entry.question.split()), entry.positives[0], keys, negatives)


@contextmanager
def _open(path: Path) -> Iterator[tuple[IO[bytes], IO[bytes]]]:
    """The file and its content, which is another stream where the file is gzipped."""
    try:
        file = path.open("rb")
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror}; give a readable file.") from error
    with file:
        if file.peek(2)[:2] == GZIP_MAGIC:
            with gzip.open(file) as unzipped:
                yield file, cast(IO[bytes], unzipped)
        else:
            yield file, file


def _megabytes(file: IO[bytes]) -> float | None:
    """The size of a file; None for what has none, such as a pipe."""
    return os.fstat(file.fileno()).st_size / MEGABYTE or None


def _entry(value: Any, number: int, path: Path) -> DprEntry:
    where = f"{path}, entry {number}"
    if not isinstance(value, dict):
        raise InputError(f"{where} is not an object with question and positive_ctxs; take it out.")
    question = value.get("question")
    if not isinstance(question, str) or not question.strip():
        raise InputError(f"{where} has no question (found {question!r}); give it one, or take it out.")
    answers = value.get("answers") or []
    if not isinstance(answers, list):
        raise InputError(f"{where}: answers must be a list, found {answers!r:.80}.")
    return DprEntry(
        number,
        question,
        tuple(map(str, answers)),
        _contexts(value, "positive_ctxs", where),
        _contexts(value, "negative_ctxs", where),
        _contexts(value, "hard_negative_ctxs", where),
    )


def _contexts(value: dict[str, Any], key: str, where: str) -> tuple[Context, ...]:
    contexts = value.get(key) or []
    if not isinstance(contexts, list):
        raise InputError(f"{where}: {key} must be a list of contexts, found {contexts!r:.80}.")
    return tuple(_context(context, f"{where}: {key}") for context in contexts)


def _context(context: Any, where: str) -> Context:
    if not isinstance(context, dict):
        raise InputError(f"{where} must hold objects with title and text, found {context!r:.80}.")
    # Some of DPR's own files have null for an unknown title.
    title, text = context.get("title"), context.get("text")
    for value in (title, text):
        if value is not None and not isinstance(value, str):
            raise InputError(f"{where} holds a title or text that is not a string ({value!r:.80}); make it one.")
    return Context(title or "", text or "")


def _explain(error: Exception, stream: CheckedStream, entry: int) -> str:
    """What is wrong with the JSON and where, out of the parser's drawing with an arrow under the wrong place."""
    message = error.args[0] if error.args else ""
    drawing = message if isinstance(message, bytes) else str(message).encode()
    what, excerpt, arrow, *_ = [*drawing.split(b"\n"), b"", b""]
    reason = what.decode(errors="replace").split(": ", 1)[-1].rstrip(".")
    if b"premature EOF" in what:
        return (
            f"{stream.place(stream.size)}: the file ends inside entry {entry} or before the closing ']': it is cut "
            "off; download it again"
        )
    shown = excerpt.strip()
    offset = stream.find(shown)
    if offset is not None:
        offset += max(0, arrow.find(b"^") - (len(excerpt) - len(excerpt.lstrip())))
    near = shown.decode(errors="replace")
    return f"{stream.place(offset)}, entry {entry}: broken JSON ({reason}) near {near!r}; correct it"
