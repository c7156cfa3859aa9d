"""Vectors that were made elsewhere: .npy and .pt files as one matrix, read by row and never unpickled.

Shapes: n rows, D dimensions.
"""

from __future__ import annotations

import itertools
import pickle
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ragstone.errors import InputError, one_line
from ragstone.types import FloatArray, IntArray

SHAPE = "a matrix of numbers with a row for each passage"


@dataclass(frozen=True)
class VectorFile:
    """A file that was opened, memory-mapped where its format allows it."""

    path: Path
    rows: int
    dimension: int
    ids: tuple[str, ...] | None
    """What passage each row belongs to; None where the file does not say."""
    take: Callable[[IntArray], FloatArray]
    """The vectors of rows."""


class VectorFiles:
    """Several files, one behind the other."""

    def __init__(self, paths: Sequence[Path]) -> None:
        """Open `paths`.

        Raises:
            InputError: one is no matrix or would have to be unpickled; they differ in length; some name their rows
                and others do not, or two rows have one name.
        """
        self._files = [open_vectors(path) for path in paths]
        first = self._files[0]
        for file in self._files:
            if file.dimension != first.dimension:
                raise InputError(
                    f"{file.path} has vectors of {file.dimension} dimensions, but {first.path} of {first.dimension}; "
                    "give the files of one encoder."
                )
            if (file.ids is None) != (first.ids is None):
                raise InputError(
                    f"{file.path} and {first.path}: one names its rows and the other does not; give files of one kind."
                )
        self.dimension = first.dimension
        self._starts = np.array([0, *itertools.accumulate(file.rows for file in self._files)], dtype=np.int64)
        self._rows: dict[str, int] | None = None
        if first.ids is not None:
            names = itertools.chain.from_iterable(file.ids or () for file in self._files)
            self._rows = {name: row for row, name in enumerate(names)}
            if len(self._rows) != len(self):
                raise InputError(
                    f"{first.path} and what follows it name {len(self) - len(self._rows)} rows twice; give each row a "
                    "name of its own."
                )

    def __len__(self) -> int:
        """n of all files."""
        return int(self._starts[-1])

    def row(self, number: int, name: str) -> int | None:
        """The row of the passage that stands at place `number` and is called `name`; None where it has none."""
        return number if self._rows is None else self._rows.get(name)

    def take(self, rows: IntArray) -> FloatArray:
        """Vectors [n, D] of `rows`, in that order.

        Raises:
            InputError: one is not finite.
        """
        found = np.empty((len(rows), self.dimension), dtype=np.float32)
        numbers = np.searchsorted(self._starts, rows, side="right") - 1
        for number in np.unique(numbers).tolist():
            inside = numbers == number
            wanted = rows[inside] - self._starts[number]
            found[inside] = self._files[number].take(wanted)
            broken = np.flatnonzero(~np.isfinite(found[inside]).all(axis=1))
            if len(broken):
                raise InputError(
                    f"{self._files[number].path}, row {wanted[broken[0]]}: the vector is not finite; make it anew."
                )
        return found


def open_vectors(path: Path) -> VectorFile:
    """Open a file of vectors.

    A .npy holds a matrix [n, D]; a .pt a tensor [n, D], or a pair of it and a list of n names.

    Raises:
        InputError: it holds something else, or something that would have to be unpickled.
    """
    readers: dict[str, Callable[[Path], VectorFile]] = {".npy": _open_npy, ".pt": _open_pt}
    reader = readers.get(path.suffix.lower())
    if reader is None:
        raise InputError(f"{path} is neither a .npy nor a .pt file; pickles are not read, save the vectors as .npy.")
    return reader(path)


def _open_npy(path: Path) -> VectorFile:
    try:
        matrix = np.load(path, mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise InputError(
            f"{path} is not a .npy file of numbers ({one_line(error, 160)}); save the numbers alone, as Python objects "
            "are not unpickled."
        ) from error
    if matrix.ndim != 2 or matrix.dtype.kind != "f":
        raise InputError(f"{path} holds {matrix.dtype} of shape {list(matrix.shape)}; it should hold {SHAPE}.")
    rows, dimension = matrix.shape
    return VectorFile(path, rows, dimension, None, lambda wanted: matrix[wanted].astype(np.float32))


def _open_pt(path: Path) -> VectorFile:
    import torch

    content = _load_pt(path)
    names = None
    if isinstance(content, (tuple, list)) and len(content) == 2:
        content, named = content
        names = tuple(map(str, named.tolist() if isinstance(named, torch.Tensor) else named))
    if not isinstance(content, torch.Tensor) or content.ndim != 2 or not content.is_floating_point():
        raise InputError(f"{path} holds no tensor of vectors, nor a pair of one and its ids; it should hold {SHAPE}.")
    tensor = content
    if names is not None and len(names) != len(tensor):
        raise InputError(f"{path} holds {len(tensor)} vectors and {len(names)} ids; each vector needs one.")
    rows, dimension = tensor.shape
    return VectorFile(path, rows, dimension, names, lambda wanted: tensor[torch.from_numpy(wanted)].float().numpy())


def _load_pt(path: Path) -> Any:
    # With torch, which .npy files do without.
    from ragstone.weights import load_tensors

    try:
        return load_tensors(path)
    except pickle.UnpicklingError as error:
        raise InputError(
            f"{path} holds more than tensors and plain values, which is not unpickled; save the tensor alone."
        ) from error
    except (OSError, EOFError, RuntimeError, ValueError) as error:
        raise InputError(
            f"{path} is not a .pt file ({one_line(error, 160)}); save the tensor again with torch.save."
        ) from error
