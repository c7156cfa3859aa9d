"""The small files of a model beside its weights, in a folder or on the hub."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from ragstone.encoders.hub import hub_options
from ragstone.errors import InputError


def find_file(name_or_path: str, file_name: str, cache_dir: str | None = None) -> Path | None:
    """A file of a model, downloaded if need be; None where the model has no such file."""
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import EntryNotFoundError

    path = Path(name_or_path) / file_name
    if not Path(name_or_path).is_dir():
        try:
            path = Path(hf_hub_download(name_or_path, file_name, cache_dir=cache_dir, **hub_options(name_or_path)))
        except EntryNotFoundError:
            return None
    return path if path.is_file() else None


def read_json(path: Path) -> Any:
    """What a JSON file holds.

    Raises:
        InputError: it is none.
    """
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise InputError(f"{path} is not JSON ({error}); save the model again.") from error


def write_json(path: Path, value: Any) -> None:
    """Write a JSON file that people can read."""
    path.write_text(json.dumps(value, indent=2) + "\n", encoding="utf-8")
