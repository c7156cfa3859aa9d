"""Where a knowledge source is, and on what it is to be searched. Imports no torch: retrieval workers do without."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

IndexDevice = Literal["cpu", "cuda"]
"""cuda: exact search over a copy of all vectors on a GPU, whatever the index."""


@dataclass(frozen=True)
class SourceLocation:
    """Where a knowledge source is."""

    passages_path: str
    """Its folder, or the passages folder in it."""
    index_path: str | None = None
    """The index file, if it is not beside the passages."""

    @property
    def index(self) -> Path | None:
        return None if self.index_path is None else Path(self.index_path)
