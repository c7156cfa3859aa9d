"""Every answer over a small vocabulary with its probability, from transformers' own forward pass and plain sums.

Shapes: B questions, N contexts per question, C answers, T tokens.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch


def all_answers(alphabet: Sequence[int], end: int, length: int) -> list[tuple[int, ...]]:
    """All that end within `length` tokens, and all of `length` tokens that have not ended by then."""
    ended = [(*body, end) for size in range(length) for body in itertools.product(alphabet, repeat=size)]
    return ended + list(itertools.product(alphabet, repeat=length))


def token_probabilities(
    model: Any, inputs: dict[str, torch.Tensor], answers: Sequence[tuple[int, ...]], start: int
) -> np.ndarray[Any, Any]:
    """p(y_i|x,z,y_<i) [C, T] of answers read from one unpadded context, 1 behind their ends.

    Args:
        model: a sequence-to-sequence model of transformers.
        inputs: its encoder's, one row.
        answers: C of them.
        start: the token that the decoder starts from.
    """
    length = max(map(len, answers))
    padding = model.config.pad_token_id
    before = torch.tensor([[start, *answer, *[padding] * length][:length] for answer in answers])
    rows = {name: tensor.expand(len(answers), -1) for name, tensor in inputs.items()}
    probabilities = model(**rows, decoder_input_ids=before).logits.double().softmax(dim=-1).numpy()
    result = np.ones((len(answers), length))
    for row, answer in enumerate(answers):
        result[row, : len(answer)] = probabilities[row, range(len(answer)), list(answer)]
    return result


def marginal(kind: str, doc_log_probs: torch.Tensor, tokens: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """p(y|x) [B, C] under RAG-Sequence ("sequence") or RAG-Token.

    Args:
        kind: how contexts are marginalised.
        doc_log_probs: [B, N]
        tokens: [B, N, C, T] as token_probabilities gives them.
    """
    prior = doc_log_probs.double().exp().numpy()
    if kind == "sequence":
        return np.einsum("bn,bna->ba", prior, tokens.prod(axis=3))
    return np.einsum("bn,bnat->bat", prior, tokens).prod(axis=2)
