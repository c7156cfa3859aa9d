"""How answers are searched for."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from ragstone.errors import InputError


@dataclass(frozen=True)
class Decoding:
    """Greedy search (one beam), beam search or sampling; names and meaning as in transformers' GenerationConfig."""

    num_beams: int = 4
    min_length: int = 1
    max_length: int = 50
    max_new_tokens: int | None = None
    """Tokens after the start token; goes before max_length."""
    num_return_sequences: int = 1
    do_sample: bool = False
    temperature: float = 1.0
    top_k: int = 50
    top_p: float = 1.0
    length_penalty: float | None = None
    """None: the generator's own."""
    bad_words_ids: tuple[tuple[int, ...], ...] | None = None
    """Token sequences never written. None: the start-of-sequence token twice in a row, which BART likes to repeat."""
    thorough: bool = True
    """RAG-Sequence only: score every candidate with every passage; else only with the passages it was found with."""

    def __post_init__(self) -> None:
        for name in ("num_beams", "max_length", "num_return_sequences"):
            if getattr(self, name) < 1:
                raise InputError(f"{name} is {getattr(self, name)}, but must be at least 1.")
        if self.max_new_tokens is not None and self.max_new_tokens < 1:
            raise InputError(f"max_new_tokens is {self.max_new_tokens}, but must be at least 1.")
        if self.min_length > self.max_length and self.max_new_tokens is None:
            raise InputError(f"min_length {self.min_length} is above max_length {self.max_length}.")

    @property
    def candidates(self) -> int:
        """Sequences that one search returns."""
        return max(self.num_beams, self.num_return_sequences)

    def generation_options(self) -> dict[str, Any]:
        """Options for transformers' generate."""
        options: dict[str, Any] = {
            "num_beams": self.candidates if not self.do_sample else self.num_beams,
            "num_return_sequences": self.candidates,
            "min_length": self.min_length,
            "do_sample": self.do_sample,
        }
        if self.max_new_tokens is None:
            options["max_length"] = self.max_length
        else:
            options["max_new_tokens"] = self.max_new_tokens
        if self.do_sample:
            options.update(temperature=self.temperature, top_k=self.top_k, top_p=self.top_p)
        if self.length_penalty is not None and options["num_beams"] > 1:
            options["length_penalty"] = self.length_penalty
        return options
