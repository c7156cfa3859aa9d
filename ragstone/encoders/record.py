"""What is remembered of an encoder beside vectors that it made: enough to tell another one, and in what it differs."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

SETTING_NAMES = {
    "pooling": "pooling",
    "normalize": "normalisation",
    "prompt": "prompt",
    "max_length": "length in tokens",
    "pair": "way of joining title and text",
}
"""Fields of EncoderSettings, as messages call them."""


@dataclass(frozen=True)
class EncoderRecord:
    """An encoder as a knowledge source or a checkpoint remembers it."""

    fingerprint: str
    """Of weights, vocabulary and settings: encoders with the same one give the same vectors."""
    name: str | None = None
    """Folder or hub name; None where that is not recorded, as the next two."""
    weights: str | None = None
    """Hash of weights and vocabulary alone."""
    settings: Mapping[str, Any] | None = None
    """EncoderSettings: pooling, normalize, prompt, max_length, pair; or those of them that count."""

    @classmethod
    def read(cls, value: Any) -> EncoderRecord | None:
        """A record from JSON: an object, or nothing."""
        return cls(**value) if value else None

    def plain(self) -> dict[str, Any]:
        """The record as JSON can hold it."""
        return dataclasses.asdict(self)

    def differences(self, other: EncoderRecord) -> list[str]:
        """What sets this encoder apart from `other`, each in a few words; empty where only the fingerprints tell."""
        found = []
        if self.weights is not None and other.weights is not None and self.weights != other.weights:
            found.append("the weights")
        if self.settings is None or other.settings is None:
            return found
        for name, spoken in SETTING_NAMES.items():
            both = name in self.settings and name in other.settings
            if both and self.settings[name] != other.settings[name]:
                found.append(f"the {spoken} ({self.settings[name]!r} and {other.settings[name]!r})")
        return found
