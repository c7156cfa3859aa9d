"""The model hub: whether it answers."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

SECONDS = 5.0
"""In which the hub must begin to answer."""


def hub_options(name_or_path: str) -> dict[str, Any]:
    """What from_pretrained needs besides: to look among earlier downloads alone where the hub does not answer.

    Left to itself, huggingface_hub asks a hub that is not there for half a minute, file by file.
    """
    return {} if Path(name_or_path).is_dir() or _answers() else {"local_files_only": True}


@cache
def _answers() -> bool:
    """Whether there is a hub at all, whatever it says. Asked once, as the user's proxies and HF_ENDPOINT have it."""
    from huggingface_hub import constants, get_session

    try:
        get_session().head(constants.ENDPOINT, timeout=SECONDS)
    except Exception:  # of the HTTP library beneath, whichever that is; or the user wants to be offline
        return False
    return True
