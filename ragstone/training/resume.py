"""Whether a run can go on: only with the data, the settings and the knowledge source that it was started with."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ragstone.errors import InputError
from ragstone.types import Example

Identity = dict[str, Any]
"""What makes a run the one it is; a checkpoint's training state holds it."""


def run_identity(
    flags: Mapping[str, Any], train: Sequence[Example], validation: Sequence[Example], source: str | None
) -> Identity:
    """The identity of a run.

    Args:
        flags: the settings that may not change on the way, by flag.
        train: the examples trained on.
        validation: the examples validated on.
        source: fingerprint of the knowledge source; None without one.
    """
    return {
        **{f"--{name}": value for name, value in flags.items()},
        "the training examples": examples_fingerprint(train),
        "the validation examples": examples_fingerprint(validation),
        "the knowledge source": source,
    }


def examples_fingerprint(examples: Sequence[Example]) -> str:
    """A hash of questions and answers in their order."""
    return hashlib.sha256(repr([(e.question, e.answer) for e in examples]).encode()).hexdigest()[:32]


def refuse_another_run(then: Identity, now: Identity, folder: Path) -> None:
    """Refuse to go on with the run in `folder` as a different one.

    Raises:
        InputError: names all that differs.
    """
    different = [
        f"{name} ({then[name]} then, {value} now)" if name.startswith("--") else name
        for name, value in now.items()
        if name in then and then[name] != value
    ]
    if different:
        raise InputError(
            f"The run in {folder} was started differently: {', '.join(different)}; resume it with what it had, or "
            "start a new run in another --output_dir."
        )
