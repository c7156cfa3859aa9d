"""A question encoder and a passage encoder that belong together."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ragstone.encoders.fresh import fresh_encoder, train_tokenizer
from ragstone.encoders.load import PASSAGE_ENCODER_KEY, load_encoder, save_encoder
from ragstone.encoders.pooling import Pooling
from ragstone.encoders.text_encoder import TextEncoder
from ragstone.errors import InputError

QUESTION_ENCODER = "question_encoder"
PASSAGE_ENCODER = "passage_encoder"


@dataclass(frozen=True)
class EncoderPair:
    """Encoders whose vectors are compared with each other; both may hold one and the same model."""

    question: TextEncoder
    passage: TextEncoder

    def save(self, folder: Path) -> None:
        """Write both into folders of their own within `folder`.

        The record of the passage encoder goes into both configs, so that a knowledge source that another one built
        can be refused.
        """
        record = self.passage.record().plain()
        for encoder, name in ((self.question, QUESTION_ENCODER), (self.passage, PASSAGE_ENCODER)):
            setattr(encoder.model.config, PASSAGE_ENCODER_KEY, record)
            save_encoder(encoder, folder / name)


def load_pair(
    question_name_or_path: str,
    passage_name_or_path: str,
    *,
    shared: bool = False,
    pooling: Pooling | None = None,
    normalize: bool | None = None,
    max_length: int | None = None,
    allow_new_weights: bool = False,
) -> EncoderPair:
    """Open both encoders; where `shared`, the question encoder's model serves both sides (see `load_encoder`).

    Raises:
        InputError: as load_encoder; vectors of different length; or normalised DPR encoders, which their folders
            cannot tell of.
    """
    options: dict[str, Any] = {"normalize": normalize, "max_length": max_length, "allow_new_weights": allow_new_weights}
    question = load_encoder(question_name_or_path, "question", pooling=pooling, **options)
    passage = load_encoder(passage_name_or_path, "passage", pooling=pooling, **options)
    for encoder in (question, passage):
        if encoder.settings.normalize and encoder.settings.pooling == "pooler":
            raise InputError(
                f"{encoder.name} is a DPR encoder, whose vectors are not normalised; leave --normalize out."
            )
    if question.dimension != passage.dimension:
        raise InputError(
            f"{question.name} makes vectors of {question.dimension} dimensions and {passage.name} of "
            f"{passage.dimension}; take two whose vectors are of equal length."
        )
    if shared:
        passage = TextEncoder(question.model, question.tokenizer, passage.settings, passage.name, question.dense)
    return EncoderPair(question, passage)


def fresh_pair(
    texts: Iterable[str],
    *,
    shared: bool = False,
    pooling: Pooling | None = None,
    normalize: bool = False,
    max_length: int | None = None,
    vocab_size: int = 8192,
    hidden_size: int = 128,
    num_layers: int = 1,
    num_heads: int = 4,
    seed: int = 42,
) -> EncoderPair:
    """Two small encoders without pretraining over a tokenizer trained on `texts` (see `fresh_encoder`).

    Both start from the same weights, so that a question and a passage with the same words score high from the first
    step; where `shared`, they stay one.
    """
    tokenizer = train_tokenizer(texts, vocab_size)

    def fresh() -> TextEncoder:
        encoder = fresh_encoder(
            tokenizer,
            hidden_size=hidden_size,
            layers=num_layers,
            heads=num_heads,
            max_length=max_length or 512,
            seed=seed,
        )
        encoder.settings = dataclasses.replace(encoder.settings, pooling=pooling or "mean", normalize=normalize)
        return encoder

    question = fresh()
    return EncoderPair(question, question if shared else fresh())
