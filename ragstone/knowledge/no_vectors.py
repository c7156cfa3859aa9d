"""What a knowledge source that has no vectors is refused with. Imports nothing heavy: settings use it."""

from __future__ import annotations

from pathlib import Path


def no_vectors(folder: Path | str) -> str:
    """The sentence that refuses what needs the vectors of the source in `folder`."""
    return (
        f"The knowledge source {folder} has no vectors, so it can be searched by words alone; take --retriever bm25, "
        "or build it with a passage encoder."
    )
