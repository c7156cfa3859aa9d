"""Importing large libraries while a terminal shows that. Imports none itself, and so is there for every command."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def importing() -> Iterator[None]:
    """Show that libraries are loaded within the with-block: torch and transformers take seconds."""
    from ragstone.progress import activity

    with activity("Loading libraries"):
        yield
