"""The one place that unpickles: the passages and ids of an old DPR index, in a process of its own.

    python legacy_pickles.py PASSAGES META OUTPUT

PASSAGES is psgs_w100.tsv.pkl, a dictionary of id to text and title; META is *.index_meta.dpr, the list of the ids of
the index's rows. Titles and texts in the order of those rows are written to OUTPUT, an Arrow stream. Nothing but
dictionaries, lists, tuples, sets, texts, bytes and numbers is made, NumPy's arrays as lists: a pickle that asks for
anything else is refused before it gets it. It gets nothing of NumPy either, whose types believe what a pickle says of
their memory: one that lied could read and call any place of it. Exit code 3 means that a file is refused, or is not
what it should be; one line on standard error says what.

Knows nothing of Ragstone, so that it starts with no more than it needs.
"""

from __future__ import annotations

import pickle
import re
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

REFUSED = 3
ORDERS = "<>="
PLAIN_TYPE = re.compile(rf"[{ORDERS}|]?([biuf][1-8]|[SU]\d{{1,9}}|O8?)")
"""Numbers, texts and bytes, and lists of what the pickle made before, as NumPy names them."""
ROWS_PER_BATCH = 1000


class Refusal(Exception):
    """A file that is not read on; the message is one sentence."""


class _Type:
    """A NumPy type of plain values, for numpy.dtype: its own would believe what a pickle says of its memory."""

    def __init__(self, name: Any) -> None:
        if not isinstance(name, str) or not PLAIN_TYPE.fullmatch(name):
            raise Refusal(f"it holds values of the type {name!r}")
        self._name = name.lstrip(ORDERS + "|")
        self._order = name[0] if name[0] in ORDERS else "="

    @property
    def holds_objects(self) -> bool:
        """Whether an array of it is a list of what the pickle made before."""
        return self._name.startswith("O")

    def values(self, content: Any) -> Any:
        """A one-dimensional array of the values that `content` holds as bytes."""
        if self.holds_objects:
            raise Refusal("it holds an array of objects as bytes")
        return np.frombuffer(content, np.dtype(self._order + self._name))

    def __setstate__(self, state: Any) -> None:
        """Of what numpy.dtype adds, the order of bytes alone; a plain type has no fields."""
        order, *fields = state[1:5]
        if order not in ("|", *ORDERS) or any(field is not None for field in fields):
            raise Refusal("it holds values of a type with fields")
        self._order = "=" if order == "|" else order


class _Array:
    """An array in one dimension, for numpy.ndarray, whose own would believe what a pickle says of its memory."""

    def __init__(self, values: list[Any] | None = None) -> None:
        self.values = values or []

    def __setstate__(self, state: Any) -> None:
        _, shape, kind, _, content = state
        self.values = _plain(shape, kind, content)


def _plain(shape: Any, kind: Any, content: Any) -> list[Any]:
    """The values of an array as a list."""
    if not isinstance(kind, _Type) or not isinstance(shape, tuple) or len(shape) != 1:
        raise Refusal(f"it holds an array of the shape {shape!r}")
    if kind.holds_objects and isinstance(content, list):
        return content
    values: list[Any] = kind.values(content).tolist()
    return values


def _type(name: Any, *_: Any) -> _Type:
    return _Type(name)


def _array(*_: Any) -> _Array:
    """An empty array, which its contents are put into next."""
    return _Array()


def _from_buffer(content: Any, kind: Any, shape: Any, *_: Any) -> _Array:
    """An array of numbers, as pickles of protocol 5 hold it."""
    return _Array(_plain(shape, kind, content))


def _scalar(kind: Any, content: Any = b"") -> Any:
    """A NumPy number as one of Python's."""
    return _plain((1,), kind, content)[0]


def _bytes(text: str, encoding: str) -> bytes:
    """How newer releases of Python write bytes for older ones."""
    if encoding not in ("latin1", "latin-1"):
        raise Refusal(f"it encodes text as {encoding}")
    return text.encode("latin-1")


def _no_call(*_: Any) -> Any:
    raise Refusal("it makes an array of its own memory")


PLAIN: dict[tuple[str, str], Any] = {
    ("numpy", "ndarray"): _no_call,
    ("numpy", "dtype"): _type,
    ("_codecs", "encode"): _bytes,
    **{(f"numpy.{core}.multiarray", "_reconstruct"): _array for core in ("core", "_core")},
    **{(f"numpy.{core}.multiarray", "scalar"): _scalar for core in ("core", "_core")},
    **{(f"numpy.{core}.numeric", "_frombuffer"): _from_buffer for core in ("core", "_core")},
}
"""All that a pickle may name, and what it gets: functions of this module. Lists, texts and numbers have no names."""


class PlainUnpickler(pickle.Unpickler):
    """Makes plain values only."""

    def find_class(self, module: str, name: str) -> Any:
        """What the pickle means by a name.

        Raises:
            Refusal: it is not in PLAIN.
        """
        found = PLAIN.get((module, name))
        if found is None:
            raise Refusal(f"it asks for {module}.{name}, which is not plain data and may run code")
        return found


def load(path: Path) -> Any:
    """What the pickle in `path` holds.

    Raises:
        Refusal: see PlainUnpickler, or a damaged file.
    """
    try:
        with path.open("rb") as file:
            found = PlainUnpickler(file).load()
    except Refusal as error:
        raise Refusal(f"{path} is refused: {error}; nothing of it was run.") from error
    except OSError as error:
        raise Refusal(f"{path} cannot be read: {error.strerror}; give a readable file.") from error
    # A damaged pickle can fail in any way.
    except Exception as error:
        reason = " ".join(str(error).split())[:160].rstrip(".")
        raise Refusal(
            f"{path} is not a pickle, or is damaged ({type(error).__name__}: {reason}); copy it again."
        ) from error
    return found.values if isinstance(found, _Array) else found


def rows(passages_path: Path, meta_path: Path) -> Iterator[tuple[str, str]]:
    """Title and text of each row of the index, in order.

    Raises:
        Refusal: a file that holds something else, or a row without a passage.
    """
    ids = load(meta_path)
    if not isinstance(ids, (list, tuple)):
        raise Refusal(
            f"{meta_path} holds a {type(ids).__name__} instead of a list of ids; give the files of an old DPR index."
        )
    passages = load(passages_path)
    if not isinstance(passages, dict):
        raise Refusal(
            f"{passages_path} holds a {type(passages).__name__} instead of passages by id; give the files of an old "
            "DPR index."
        )
    for row, name in enumerate(ids):
        found = _find(passages, name)
        if not isinstance(found, (tuple, list)) or len(found) < 2 or not all(isinstance(p, str) for p in found[:2]):
            what = "no passage" if found is None else "something else than a text and a title"
            raise Refusal(
                f"{passages_path} holds {what} for {str(name)[:60]!r}, row {row} of {meta_path.name}; give the files "
                "of one index."
            )
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
