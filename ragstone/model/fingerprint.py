"""A short hash by which two models can be told apart."""

from __future__ import annotations

from typing import Any

from ragstone.progress import activity
from ragstone.weights import hash_weights

NOT_SETTINGS = ("transformers_version", "_from_model_config")
"""What a generation config holds besides settings."""


@activity("Hashing the generator")
def fingerprint(generator: Any, *settings: object) -> str:
    """Hash of a transformers generator's weights and generation config, and of the text of `settings`."""
    generation = generator.generation_config.to_diff_dict()
    decoding = sorted((key, repr(value)) for key, value in generation.items() if key not in NOT_SETTINGS)
    return hash_weights(generator.state_dict(), settings, decoding)
