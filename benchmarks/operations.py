"""Floating-point operations that work on BART- and BERT-like models needs, from their configs and true token counts.

A multiplication and an addition are two operations. Matrix products count, no others: what stands between them is
small. Nothing is counted for padding, for keys and values that several beams could share, or for vocabulary rows where
no target stands. Backward takes twice as many as forward: products for the inputs' gradients and for the weights'.

Shapes: S tokens of a text, T target tokens, D width, F width of a feed-forward layer, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

TRAINING = 3
"""Times the operations of forward: forward and backward together."""


@dataclass(frozen=True)
class Stack:
    """The layers of an encoder or a decoder."""

    layers: int
    width: int
    feed_forward: int

    def text(self, tokens: int) -> int:
        """Operations of an encoder for a text of S tokens."""
        return self.layers * (self._rows(tokens, 4) + self._attention(tokens, tokens))

    def contexts(self, tokens: int) -> int:
        """Of a decoder, once for a context of S tokens: the keys and values that answers attend to."""
        return self.layers * 2 * tokens * 2 * self.width**2

    def answer(self, targets: int, context: int) -> int:
        """Of a decoder for T target tokens that attend to a context of S tokens, without `contexts`.

        All pairs of targets count, as kernels compute them; a causal mask would halve this smallest part.
        """
        attention = self._attention(targets, targets) + self._attention(targets, context)
        return self.layers * (self._rows(targets, 6) + attention)

    def _rows(self, tokens: int, square: int) -> int:
        """Of linear layers: so many D x D ones, and the feed-forward layer."""
        return 2 * tokens * (square * self.width**2 + 2 * self.width * self.feed_forward)

    def _attention(self, queries: int, keys: int) -> int:
        """Of both products, of queries with keys and of weights with values."""
        return 2 * 2 * queries * keys * self.width


@dataclass(frozen=True)
class Generator:
    """A sequence-to-sequence model like BART."""

    encoder: Stack
    decoder: Stack
    vocabulary: int

    @classmethod
    def of(cls, config: Any) -> Generator:
        """From a BartConfig."""
        return cls(
            Stack(config.encoder_layers, config.d_model, config.encoder_ffn_dim),
            Stack(config.decoder_layers, config.d_model, config.decoder_ffn_dim),
            config.vocab_size,
        )

    def encode(self, contexts: Sequence[int]) -> int:
        """To encode contexts of so many tokens each."""
        return sum(map(self.encoder.text, contexts))

    def decode(self, contexts: Sequence[int], answers: Sequence[Sequence[int]]) -> int:
        """To read answers given encoded contexts: for each context, the target tokens of each of its answers."""
        states = sum(map(self.decoder.contexts, contexts))
        rows = sum(
            self.decoder.answer(targets, context)
            for context, lengths in zip(contexts, answers, strict=True)
            for targets in lengths
        )
        return states + rows

    def scores(self, answers: Sequence[Sequence[int]]) -> int:
        """Of the vocabulary's layer at the target tokens of `answers`, as in `decode`."""
        return 2 * sum(map(sum, answers)) * self.decoder.width * self.vocabulary


def bert(config: Any) -> Stack:
    """The layers of a BertConfig; a pooler, of one token, is left out."""
    return Stack(config.num_hidden_layers, config.hidden_size, config.intermediate_size)
