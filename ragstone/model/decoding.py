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
    """Tokens; both lengths count the decoder's start token, as transformers does."""
    max_new_tokens: int | None = None
    """Tokens after the start token; goes before max_length."""
    num_return_sequences: int = 1
    """Answers per question: at most num_beams; RAG-Sequence chooses among the beams of all passages. Samples: any."""
    do_sample: bool = False
    """With one beam, draw answers independently from p(y|x); with more, let the beams sample."""
    seed: int | None = None
    """Of the samples of one call; None draws on with torch's random numbers."""
    temperature: float = 1.0
    top_k: int = 50
    """Sample among the likeliest tokens only; 0 among all."""
    top_p: float = 1.0
    length_penalty: float | None = None
    """None: the generator's own."""
    bad_words_ids: tuple[tuple[int, ...], ...] | None = None
    """Token sequences never written. None: the start-of-sequence token twice in a row, which BART likes to repeat."""
    thorough: bool = True
    """RAG-Sequence only: score every candidate with every passage; else only with the passages it was found with."""

    def __post_init__(self) -> None:
        for name in ("num_beams", "num_return_sequences"):
            if getattr(self, name) < 1:
                raise InputError(f"{name} is {getattr(self, name)}, but must be at least 1.")
        if self.max_new_tokens is not None and self.max_new_tokens < 1:
            raise InputError(f"max_new_tokens is {self.max_new_tokens}, but must be at least 1.")
        if self.longest < 2:
            raise InputError(f"max_length is {self.max_length}, but must be at least 2: it counts the start token.")
        if self.min_length > self.longest:
            limit = "max_length" if self.max_new_tokens is None else "the start token and max_new_tokens, together"
            raise InputError(f"min_length {self.min_length} is above {limit} {self.longest}; lower it.")
        if self.temperature <= 0:
            raise InputError(
                f"temperature is {self.temperature}, but must be above 0; for greedy search do not sample."
            )
        if self.top_k < 0:
            raise InputError(f"top_k is {self.top_k}, but must be at least 1, or 0 for the whole vocabulary.")
        if not 0 < self.top_p <= 1:
            raise InputError(f"top_p is {self.top_p}, but must be above 0 and at most 1.")

    @property
    def longest(self) -> int:
        """Tokens of an answer at most, the decoder's start token included."""
        return self.max_length if self.max_new_tokens is None else self.max_new_tokens + 1

    @property
    def longest_answer(self) -> int:
        """Tokens of an answer at most, without the start token, which is no part of it."""
        return self.longest - 1

    @property
    def answers_at_once(self) -> int:
        """Answers to a context that are written together."""
        return max(self.num_beams, self.num_return_sequences)

    @property
    def samples(self) -> bool:
        """Whether every answer is an independent draw; beams that sample are a search nevertheless."""
        return self.do_sample and self.num_beams == 1

    def refuse_more_answers_than_beams(self) -> None:
        """For a search whose only candidates are its beams.

        Raises:
            InputError: num_return_sequences is above num_beams.
        """
        if self.num_return_sequences > self.num_beams and not self.samples:
            raise InputError(
                f"num_return_sequences {self.num_return_sequences} is above num_beams {self.num_beams}, and a search "
                "finds as many answers as it has beams; raise num_beams, or sample with one beam."
            )

    def generation_options(self) -> dict[str, Any]:
        """Options for transformers' generate; none of the generator's own lengths and output formats stay in force."""
        options: dict[str, Any] = {
            "num_beams": self.num_beams,
            "num_return_sequences": self.num_return_sequences,
            "min_length": self.min_length,
            "min_new_tokens": None,
            "max_length": self.longest,
            "max_new_tokens": None,
            "do_sample": self.do_sample,
            "return_dict_in_generate": False,
        }
        if self.do_sample:
            options.update(temperature=self.temperature, top_k=self.top_k, top_p=self.top_p)
        if self.length_penalty is not None and self.num_beams > 1:
            options["length_penalty"] = self.length_penalty
        return options
