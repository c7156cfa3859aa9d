"""The one place that unpickles: the passages and ids of an old DPR index, in a process of its own.

    python legacy_pickles.py PASSAGES META OUTPUT

PASSAGES is psgs_w100.tsv.pkl, a dictionary of id to text and title; META is *.index_meta.dpr, the list of the ids of
the index's rows. Titles and texts in the order of those rows are written to OUTPUT, an Arrow stream. Nothing but
dictionaries, lists, tuples, sets, texts, bytes, numbers and NumPy arrays of them is made: a pickle that asks for
anything else is refused before it gets it. Exit code 3 means that, or that a file is not what it should be; one line on
standard error says what.

Knows nothing of Ragstone, so that it starts with no more than it needs.
"""

from __future__ import annotations

import pickle
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

REFUSED = 3
ROWS_PER_BATCH = 1000


class Refusal(Exception):
    """A file that is not read on; the message is one sentence."""


def _reconstruct(kind: Any, shape: Any, code: Any) -> Any:
    """An empty array, which its contents are put into next."""
    if kind is not np.ndarray:
        raise Refusal(f"it makes an array of {kind!r}")
    return np.ndarray.__new__(np.ndarray, shape, code)


def _from_buffer(buffer: Any, dtype: Any, shape: Any, order: Any, *_: Any) -> Any:
    """An array of numbers, as pickles of protocol 5 hold it."""
    if dtype.kind not in "biufSU":
        raise Refusal(f"it holds an array of type {dtype}")
    return np.frombuffer(buffer, dtype).reshape(shape, order=order)


def _scalar(dtype: Any, content: Any = b"") -> Any:
    if dtype.kind not in "biufSU":
        raise Refusal(f"it holds a number of type {dtype}")
    return np.frombuffer(content, dtype)[0]


def _bytes(text: str, encoding: str) -> bytes:
    """How newer releases of Python write bytes for older ones."""
    if encoding not in ("latin1", "latin-1"):
        raise Refusal(f"it encodes text as {encoding}")
    return text.encode("latin-1")


PLAIN: dict[tuple[str, str], Any] = {
    ("numpy", "ndarray"): np.ndarray,
    ("numpy", "dtype"): np.dtype,
    ("_codecs", "encode"): _bytes,
    **{(f"numpy.{core}.multiarray", "_reconstruct"): _reconstruct for core in ("core", "_core")},
    **{(f"numpy.{core}.multiarray", "scalar"): _scalar for core in ("core", "_core")},
    **{(f"numpy.{core}.numeric", "_frombuffer"): _from_buffer for core in ("core", "_core")},
}
"""All that a pickle may name. Dictionaries, lists, texts and numbers have no names."""


class PlainUnpickler(pickle.Unpickler):
    """Makes plain values only."""

    def find_class(self, module: str, name: str) -> Any:
        """What the pickle means by a name.

        Raises:
            Refusal: it is not in PLAIN.
        """
        found = PLAIN.get((module, name))
        if found is None:
            raise Refusal(f"it asks for {module}.{name}, which is no plain data and may run code")
        return found


def load(path: Path) -> Any:
    """What the pickle in `path` holds.

    Raises:
        Refusal: see PlainUnpickler, or a damaged file.
    """
    try:
        with path.open("rb") as file:
            return PlainUnpickler(file).load()
    except Refusal as error:
        raise Refusal(f"{path} is refused: {error}; nothing of it was run.") from error
    except OSError as error:
        raise Refusal(f"{path} cannot be read: {error.strerror}.") from error
    # A damaged pickle can fail in any way.
    except Exception as error:
        reason = " ".join(str(error).split())[:160].rstrip(".")
        raise Refusal(f"{path} is no pickle, or a damaged one ({type(error).__name__}: {reason}).") from error


def rows(passages_path: Path, meta_path: Path) -> Iterator[tuple[str, str]]:
    """Title and text of each row of the index, in order.

    Raises:
        Refusal: a file that holds something else, or a row without a passage.
    """
    ids = load(meta_path)
    if not isinstance(ids, (list, tuple, np.ndarray)):
        raise Refusal(f"{meta_path} holds a {type(ids).__name__} instead of a list of ids.")
    passages = load(passages_path)
    if not isinstance(passages, dict):
        raise Refusal(f"{passages_path} holds a {type(passages).__name__} instead of passages by id.")
    for row, name in enumerate(ids):
        found = _find(passages, name)
        if not isinstance(found, (tuple, list)) or len(found) < 2 or not all(isinstance(p, str) for p in found[:2]):
            what = "no passage" if found is None else "something else than a text and a title"
            raise Refusal(f"{passages_path} holds {what} for {str(name)[:60]!r}, row {row} of {meta_path.name}.")
        yield found[1], found[0]


def _find(passages: dict[Any, Any], name: Any) -> Any:
    """The passage of an id, which stands as a text or as a number in either file."""
    readings: tuple[Callable[[Any], Any], ...] = (str, int, lambda name: str(int(name)))
    for reading in readings:
        try:
            key = reading(name)
        except (TypeError, ValueError):
            continue
        if key in passages:
            return passages[key]
    return None


def main(passages_path: Path, meta_path: Path, output: Path) -> int:
    """Write the rows to `output` and return the exit code."""
    schema = pa.schema([("title", pa.string()), ("text", pa.string())])
    try:
        with output.open("wb") as file, pa.ipc.new_stream(file, schema) as stream:
            batch: list[tuple[str, str]] = []
            for row in rows(passages_path, meta_path):
                batch.append(row)
                if len(batch) == ROWS_PER_BATCH:
                    stream.write_batch(_as_batch(batch, schema))
                    batch = []
            stream.write_batch(_as_batch(batch, schema))
    except Refusal as error:
        print(error, file=sys.stderr)
        return REFUSED
    return 0


def _as_batch(batch: list[tuple[str, str]], schema: Any) -> Any:
    columns = zip(*batch, strict=True) if batch else ((), ())
    return pa.record_batch([pa.array(column, pa.string()) for column in columns], schema)


if __name__ == "__main__":
    sys.exit(main(*map(Path, sys.argv[1:4])))
