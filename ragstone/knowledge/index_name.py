"""--index_name of the reference: "custom" for the index of a knowledge source, else the name of a published index."""

from __future__ import annotations

from ragstone.errors import InputError

CUSTOM = "custom"
LEGACY = "legacy"
"""DPR's own files, which ragstone import-legacy converts."""


def refuse_published_index(index_name: str | None, passages_path: str | None, use_dummy_dataset: bool) -> None:
    """Refuse settings that name a knowledge source and another index than its own.

    Raises:
        InputError: `index_name` is a published index's, or the dummy is asked for, and `passages_path` is given.
    """
    if passages_path is not None and use_dummy_dataset:
        raise InputError(f"--use_dummy_dataset is a source itself; leave it or --passages_path {passages_path} out.")
    if passages_path is not None and index_name not in (None, CUSTOM):
        raise InputError(
            f"--index_name {index_name} names a published index; with --passages_path leave it out or give {CUSTOM}."
        )
