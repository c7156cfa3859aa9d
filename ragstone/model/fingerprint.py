"""A short hash by which two models can be told apart."""

from __future__ import annotations

import hashlib
from typing import Any

from ragstone.progress import activity

NOT_SETTINGS = ("transformers_version", "_from_model_config")
"""What a generation config holds besides settings."""


@activity("Hashing the generator")
def fingerprint(generator: Any, *settings: object) -> str:
    """Hash of a transformers generator's weights and generation config, and of the text of `settings`."""
    generation = generator.generation_config.to_diff_dict()
    decoding = sorted((key, repr(value)) for key, value in generation.items() if key not in NOT_SETTINGS)
    digest = hashlib.sha256(repr((settings, decoding)).encode())
    for name, tensor in sorted(generator.state_dict().items()):
        digest.update(name.encode())
        digest.update(tensor.detach().float().cpu().contiguous().numpy().data)
    return digest.hexdigest()[:32]
