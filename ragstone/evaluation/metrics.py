"""Metrics of answers and of retrieval, one value per question, so that their uncertainty can be told.

All functions are pure. Values lie in [0, 1]; the arrays are [B], in the order of the questions.
Shapes: B questions.
"""

from __future__ import annotations

import re
import string
import unicodedata
from collections import Counter
from collections.abc import Iterable, Sequence

import numpy as np
import numpy.typing as npt
import regex

PerQuestion = npt.NDArray[np.float64]
Ranks = npt.NDArray[np.int64]
"""[B] where the first hit stands, counted from 1; 0 where there is none."""

_PUNCTUATION = str.maketrans("", "", string.punctuation)
# The standard library's idea of a word, as in the published script; regex counts combining marks as letters.
_ARTICLES = re.compile(r"\b(?:a|an|the)\b")
_DPR_TOKENS = regex.compile(r"[\p{L}\p{N}\p{M}]+|[^\p{Z}\p{C}]")


def normalize_answer(text: str) -> str:
    """Lower case, without ASCII punctuation, then without the articles a, an, the, white space as single blanks.

    The normalisation of SQuAD 1.1's evaluation (Rajpurkar et al. 2016, arXiv 1606.05250), which the reference shares.
    """
    return " ".join(_ARTICLES.sub(" ", text.lower().translate(_PUNCTUATION)).split())


def exact_match(prediction: str, golds: Iterable[str]) -> float:
    """SQuAD 1.1's exact match: 1 where the normalised prediction is one of the normalised golds."""
    answer = normalize_answer(prediction)
    return float(any(answer == normalize_answer(gold) for gold in golds))


def f1(prediction: str, golds: Iterable[str]) -> float:
    """SQuAD 1.1's F1 of normalised words, counted with repetition; the best over the golds.

    As published, it is 0 where either side has no words left, even where both have none and exact match is 1.
    """
    words = Counter(normalize_answer(prediction).split())
    return max((_f1(words, Counter(normalize_answer(gold).split())) for gold in golds), default=0.0)


def exact_matches(predictions: Sequence[str], golds: Sequence[Sequence[str]]) -> PerQuestion:
    """`exact_match` of each prediction."""
    return np.array([exact_match(p, g) for p, g in zip(predictions, golds, strict=True)], dtype=np.float64)


def f1s(predictions: Sequence[str], golds: Sequence[Sequence[str]]) -> PerQuestion:
    """`f1` of each prediction."""
    return np.array([f1(p, g) for p, g in zip(predictions, golds, strict=True)], dtype=np.float64)


def precisions_at_k(titles: Sequence[Sequence[str]], golds: Sequence[Sequence[str]], k: int) -> PerQuestion:
    """The reference's precision@k (get_precision_at_k): distinct gold titles among the first k titles, over k.

    Several passages of one document count once, so that it reaches 1 only where k gold documents are found.
    """
    hits = [len(set(found[:k]) & set(gold)) / k for found, gold in zip(titles, golds, strict=True)]
    return np.array(hits, dtype=np.float64)


def answer_tokens(text: str) -> str:
    """DPR's words (Karpukhin et al. 2020, arXiv 2004.04906) with a blank before, between and behind; empty if none.

    Decomposed (NFD), split into runs of letters, digits and marks and into single other characters, lower case.
    """
    tokens = [token.lower() for token in _DPR_TOKENS.findall(unicodedata.normalize("NFD", text))]
    return f" {' '.join(tokens)} " if tokens else ""


def has_answer(text: str, answers: Iterable[str]) -> bool:
    """Whether DPR's words of an answer stand one behind the other in a passage's text; the title does not count.

    Unlike in DPR, an answer without words ("", " ") stands nowhere.
    """
    tokens = answer_tokens(text)
    return any(answer and answer in tokens for answer in map(answer_tokens, answers))


def title_ranks(titles: Iterable[Sequence[str]], golds: Iterable[Sequence[str]]) -> Ranks:
    """Where each question's first gold title stands."""
    ranks = [_first_rank(title in gold for title in found) for found, gold in zip(titles, golds, strict=True)]
    return np.array(ranks, dtype=np.int64)


def answer_ranks(texts: Iterable[Sequence[str]], golds: Iterable[Sequence[str]]) -> Ranks:
    """Where each question's first passage that contains an answer stands; `texts` are passages, best first."""
    ranks = [
        _first_rank(has_answer(text, answers) for text in passages)
        for passages, answers in zip(texts, golds, strict=True)
    ]
    return np.array(ranks, dtype=np.int64)


def hits_at_k(ranks: Ranks, k: int) -> PerQuestion:
    """1 where the first hit is among the first k; of `answer_ranks`, it is recall@k (DPR's top-k accuracy)."""
    return ((ranks > 0) & (ranks <= k)).astype(np.float64)


def reciprocal_ranks(ranks: Ranks) -> PerQuestion:
    """1 / rank of the first hit, 0 where there is none; its mean is MRR."""
    return np.divide(1.0, ranks, out=np.zeros(len(ranks), dtype=np.float64), where=ranks > 0)


def _f1(words: Counter[str], gold_words: Counter[str]) -> float:
    shared = (words & gold_words).total()
    if shared == 0:
        return 0.0
    precision, recall = shared / words.total(), shared / gold_words.total()
    return 2 * precision * recall / (precision + recall)


def _first_rank(hits: Iterable[bool]) -> int:
    return next((rank for rank, hit in enumerate(hits, start=1) if hit), 0)
