"""A short hash by which two models can be told apart."""

from __future__ import annotations

import hashlib

from torch import nn


def fingerprint(module: nn.Module, *settings: object) -> str:
    """Hash of a module's weights and of the text of `settings`."""
    digest = hashlib.sha256(repr(settings).encode())
    for name, tensor in sorted(module.state_dict().items()):
        digest.update(name.encode())
        digest.update(tensor.detach().float().cpu().contiguous().numpy().data)
    return digest.hexdigest()[:32]
