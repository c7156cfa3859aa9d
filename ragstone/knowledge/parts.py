"""A corpus in parts: a folder from which many processes take passages, and to which they bring them with vectors.

A part that is finished stays so, whatever becomes of the process that asked for it: a second start goes on with the
others.
"""

from __future__ import annotations

import dataclasses
import fcntl
import json
import math
import os
import shutil
import sys
import uuid
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa

from ragstone.encoders.text_encoder import TextEncoder
from ragstone.errors import InputError
from ragstone.knowledge.corpus import Corpus
from ragstone.knowledge.store import ShardWriter, describe_shards, shard_names
from ragstone.output import write_text
from ragstone.types import FloatArray, Passage

RECORD_NAME = "parts.json"
LOCK_NAME = ".ragstone.lock"
"""Of a file, since network file systems keep no locks of folders."""
PASSAGES = "passages-*.arrow"
FINISHED = "embedded-*.arrow"
UNFINISHED = "*.new"


@dataclass(frozen=True)
class Part:
    """Passages that follow each other."""

    folder: Path
    number: int

    @property
    def finished_path(self) -> Path:
        """Where it is once it has its vectors."""
        return self.folder / FINISHED.replace("*", f"{self.number:05d}")

    @property
    def _path(self) -> Path:
        return self.folder / PASSAGES.replace("*", f"{self.number:05d}")

    def write(self, passages: list[Passage]) -> None:
        """Write its passages, without vectors."""
        titles, texts = [passage.title for passage in passages], [passage.text for passage in passages]
        table = pa.table({"title": pa.array(titles, pa.string()), "text": pa.array(texts, pa.string())})
        # A worker that an earlier start has left may be reading what is there.
        new = self._new_path()
        with pa.OSFile(str(new), "wb") as file, pa.ipc.new_stream(file, table.schema) as stream:
            stream.write_table(table)
        new.replace(self._path)

    def groups(self, size: int) -> Iterator[list[Passage]]:
        """Its passages, `size` at a time, numbered within it."""
        with pa.OSFile(str(self._path), "rb") as file, pa.ipc.open_stream(file) as stream:
            rows = stream.read_all().to_pylist()
        passages = [Passage(number, row["title"], row["text"]) for number, row in enumerate(rows)]
        for start in range(0, len(passages), size):
            yield passages[start : start + size]

    def finish(self, embedded: Iterable[tuple[list[Passage], FloatArray]], dimension: int) -> None:
        """Write its passages with their vectors, and have them in their place in one step."""
        new = self._new_path()
        with ShardWriter(new, dimension) as writer:
            for passages, vectors in embedded:
                writer.write([passage.title for passage in passages], [passage.text for passage in passages], vectors)
        new.replace(self.finished_path)

    def finished_rows(self) -> int:
        """How many passages it has with their vectors."""
        with pa.memory_map(str(self.finished_path)) as file, pa.ipc.open_stream(file) as stream:
            return sum(batch.num_rows for batch in stream)

    def _new_path(self) -> Path:
        """A new one, for what is written: two processes may be at the same part, where one was believed to be lost."""
        return self.folder / UNFINISHED.replace("*", f"{self.number:05d}-{uuid.uuid4().hex}")


@dataclass(frozen=True)
class Record:
    """What finished parts belong to."""

    passages: str
    """Fingerprint of the corpus."""
    encoder: str
    """Fingerprint of the encoder."""
    encoder_name: str
    precision: str
    passages_per_part: int


class Parts:
    """All parts of a corpus. Get them from `open_parts`."""

    def __init__(self, folder: Path, corpus: Corpus, passages_per_part: int) -> None:
        self.folder = folder
        self._corpus = corpus
        self._size = passages_per_part
        self._parts = [Part(folder, number) for number in range(math.ceil(corpus.passages / passages_per_part))]

    def __len__(self) -> int:
        return len(self._parts)

    def unfinished(self) -> list[Part]:
        """Those without vectors."""
        # A network file system shows what other hosts wrote to whoever lists the folder, not at once to others.
        finished = set(self.folder.glob(FINISHED))
        return [part for part in self._parts if part.finished_path not in finished]

    def passages_in(self, parts: Iterable[Part]) -> int:
        """How many passages there are in `parts`; all are of one size, but for the last."""
        return sum(min(self._size, self._corpus.passages - part.number * self._size) for part in parts)

    def write(self) -> None:
        """Write the passages of those that are to do, from the documents.

        Raises:
            InputError: the documents are not what they were.
        """
        unfinished = set(self.unfinished())
        for number, passages in enumerate(self._corpus.groups(self._size)):
            part = Part(self.folder, number)
            if part in unfinished:
                part.write(passages)

    def make_store(self, folder: Path, dimension: int) -> None:
        """Make a store in `folder` of all parts, which are finished.

        Raises:
            InputError: one has not the passages that it should have.
        """
        for part in self._parts:
            there, due = part.finished_rows(), self.passages_in([part])
            if there != due:
                part.finished_path.unlink()
                raise InputError(
                    f"{part.finished_path} had {there:,} passages instead of {due:,}, and was removed; give the "
                    "same command again to rebuild it, and run only one build at a time."
                )
        folder.mkdir(parents=True)
        names = shard_names(len(self._parts))
        for part, name in zip(self._parts, names, strict=True):
            try:
                # A second name costs no room, and the part is still there if the build is stopped later on.
                (folder / name).hardlink_to(part.finished_path)
            except OSError:
                shutil.move(part.finished_path, folder / name)
        describe_shards(folder, names, self._corpus.passages, dimension)


def open_parts(folder: Path, corpus: Corpus, encoder: TextEncoder, precision: str, passages_per_part: int) -> Parts:
    """The parts in `folder`: those of an earlier start of the same work, or new ones.

    Args:
        folder: not there yet, or from an earlier start.
        corpus: what is divided.
        encoder: what makes the vectors.
        precision: the arithmetic that it is asked for.
        passages_per_part: size of new parts; those of an earlier start keep theirs.

    Raises:
        InputError: `folder` is something else, or has finished parts of other documents, another encoder or precision.
    """
    record = Record(corpus.fingerprint, encoder.fingerprint(), encoder.name, precision, passages_per_part)
    earlier = _read_record(folder)
    if earlier is not None and _count_finished(folder):
        _refuse_others(folder, earlier, record)
        _remove(folder, UNFINISHED)
        parts = Parts(folder, corpus, earlier.passages_per_part)
        done = len(parts) - len(parts.unfinished())
        print(f"{folder} has {done} of {len(parts)} parts from an earlier start.", file=sys.stderr)
    else:
        _remove(folder, UNFINISHED)
        _remove(folder, PASSAGES)
        write_text(folder / RECORD_NAME, json.dumps(dataclasses.asdict(record), indent=2) + "\n")
        parts = Parts(folder, corpus, passages_per_part)
    parts.write()
    return parts


@contextmanager
def keep_finished_parts(folder: Path) -> Iterator[None]:
    """The folder, which goes when the with-block ends well. Else finished parts stay in it, and the user is told.

    Raises:
        InputError: another process is within such a with-block, as far as the file system can tell.
    """
    made = [parent for parent in folder.parents if not parent.exists()]
    folder.mkdir(parents=True, exist_ok=True)
    with _alone_in(folder):
        try:
            yield
        except BaseException as error:
            finished = _count_finished(folder)
            if finished and not isinstance(error, InputError):
                kept = f"{folder} keeps {finished} finished part(s)"
                print(f"{kept}; the same command goes on with them.", file=sys.stderr)
            if not finished and _is_ours(folder):
                shutil.rmtree(folder, ignore_errors=True)
                # A parent stays if something else has come into it meanwhile.
                with suppress(OSError):
                    for parent in made:
                        parent.rmdir()
            raise
        shutil.rmtree(folder, ignore_errors=True)


@contextmanager
def _alone_in(folder: Path) -> Iterator[None]:
    path = folder / LOCK_NAME
    with path.open("a") as lock:
        busy = InputError(f"Another process is making parts in {folder}; wait until it is done.")
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise busy from None
        except OSError:
            # Not every network file system can: there, nobody is kept out.
            pass
        if not path.exists() or not os.path.samestat(path.stat(), os.fstat(lock.fileno())):
            # The other process was done just now.
            raise busy
        try:
            yield
        finally:
            path.unlink(missing_ok=True)


def _is_ours(folder: Path) -> bool:
    """Whether it holds nothing but what is made here."""
    return (folder / RECORD_NAME).is_file() or {path.name for path in folder.iterdir()} <= {LOCK_NAME}


def _remove(folder: Path, pattern: str) -> None:
    for path in folder.glob(pattern):
        path.unlink(missing_ok=True)


def _count_finished(folder: Path) -> int:
    return sum(1 for _ in folder.glob(FINISHED))


def _read_record(folder: Path) -> Record | None:
    """The record in `folder`; None where there is no folder, or an empty one."""
    path = folder / RECORD_NAME
    try:
        return Record(**json.loads(path.read_text(encoding="utf-8")))
    except FileNotFoundError:
        if folder.exists() and not _is_ours(folder):
            raise InputError(f"{folder} is where the build would keep its parts, but is not empty; move it.") from None
        return None
    except (ValueError, TypeError) as error:
        raise InputError(f"{path} is damaged ({error}); remove its folder to begin anew.") from error


def _refuse_others(folder: Path, earlier: Record, record: Record) -> None:
    others = {
        "other documents or of another --max_words": earlier.passages != record.passages,
        f"another encoder ({earlier.encoder_name})": earlier.encoder != record.encoder,
        f"--precision {earlier.precision}": earlier.precision != record.precision,
    }
    for what, differ in others.items():
        if differ:
            raise InputError(
                f"{folder} has finished parts of {what}, from an earlier start; start as before to go on, or remove "
                "the folder to begin anew."
            )
