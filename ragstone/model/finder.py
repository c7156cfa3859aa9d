"""Questions to passages with scores: the one spot where a retriever's name becomes what finds.

Shapes: B questions, N passages per question, D dimensions, C candidates of a question.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch

from ragstone.encoders.text_encoder import TextEncoder
from ragstone.index.bm25 import best_rows
from ragstone.knowledge.source import KnowledgeSource, SourceInfo
from ragstone.retrieval.backend import RetrievalBackend
from ragstone.retrieval.fusion import common_scale, reciprocal_rank_fusion
from ragstone.retrieval.local import LocalRetriever, fetch
from ragstone.retrieval.location import SourceLocation
from ragstone.retrieval.method import FusionName, Method
from ragstone.retrieval.retriever import Retriever
from ragstone.types import FloatArray, IntArray, Passage

CANDIDATES = 100
"""Passages that each side of a hybrid search proposes, at least."""


@dataclass(frozen=True)
class Found:
    """What was found for a batch of questions, best first."""

    ids: IntArray
    """[B, N] rows in the knowledge source, -1 where there is no passage."""
    passages: Sequence[Sequence[Passage]]
    """B lists of N."""
    scores: torch.Tensor
    """[B, N] float32, whose softmax over the passages there are is the prior p(z|x); on any device."""


class Finder(Protocol):
    """Finds passages for questions."""

    asks_encoder: bool
    """Whether the scores depend on the question encoder, which then learns from them."""

    def find(self, questions: Sequence[str], n_docs: int) -> Found:
        """The `n_docs` best passages for each question."""

    def close(self) -> None:
        """Let go of the knowledge source."""


class DenseFinder:
    """The nearest passages to the question vector; a score is question vector · passage vector."""

    asks_encoder = True

    def __init__(self, encoder: TextEncoder, retriever: Retriever) -> None:
        self.encoder = encoder
        self.retriever = retriever

    def find(self, questions: Sequence[str], n_docs: int) -> Found:
        """See Finder.find. Gradients of the scores flow to the question encoder."""
        vectors = self.encoder(**self.encoder.tokenize(questions))
        found = self.retriever.retrieve(vectors.detach().cpu().numpy(), n_docs)
        return Found(found.ids, found.passages, inner_products(vectors, found.vectors))

    def close(self) -> None:
        """See Finder.close."""
        self.retriever.close()


class Bm25Finder:
    """The passages that share most with the words of the question; a score is BM25's. No gradients.

    A passage that has none of the words is not found, so there may be fewer than N, or none.
    """

    asks_encoder = False

    def __init__(self, source: KnowledgeSource) -> None:
        self._source = source
        self._index = source.bm25

    def find(self, questions: Sequence[str], n_docs: int) -> Found:
        """See Finder.find."""
        scores, ids = self._index.search(questions, n_docs)
        # What is masked may hold no infinity: its product with a gradient of 0 is no number.
        return Found(ids, self._source.store.passage_rows(ids), torch.from_numpy(np.where(ids < 0, 0, scores)))

    def close(self) -> None:
        """See Finder.close; a memory map needs no closing."""


class HybridFinder:
    """The best of what the question vector and the question's words propose.

    With "sum" a score is w · (question vector · passage vector) + (1 - w) · BM25 · scale, where the scale gives BM25's
    scores of a question's candidates the deviation of the dense ones (see common_scale). It is a constant to the
    gradient; the dense part is not, so the question encoder learns. Both scores are computed for every candidate,
    whichever side proposed it.

    With "rrf" the passages and their order are those of reciprocal rank fusion, and a score, of which the prior is
    made, is question vector · passage vector. Fused ranks make no prior: they are the same for a passage that fits best
    by far as for one that is as good as the next, lie so close together that their softmax is uniform within some
    percent, and have no gradient. The inner product is what the model's prior means, and passages that their words
    alone brought in teach the question encoder what it does not find by itself.
    """

    asks_encoder = True

    def __init__(self, encoder: TextEncoder, retriever: LocalRetriever, fusion: FusionName, weight: float) -> None:
        """`weight` is w of a sum."""
        self._encoder = encoder
        self._retriever = retriever
        self._store = retriever.source.store
        self._bm25 = retriever.source.bm25
        self._choose = {"rrf": self._choose_by_ranks, "sum": self._choose_by_scores}[fusion]
        self._weight = {"rrf": 1.0, "sum": weight}[fusion]

    def find(self, questions: Sequence[str], n_docs: int) -> Found:
        """See Finder.find. Gradients of the scores flow to the question encoder."""
        vectors = self._encoder(**self._encoder.tokenize(questions))
        asked = vectors.detach().float().cpu().numpy()
        wanted = max(CANDIDATES, n_docs)
        ids = np.full((len(questions), n_docs), -1, dtype=np.int64)
        constants = np.zeros((len(questions), n_docs), dtype=np.float32)
        for row, nearest in enumerate(self._retriever.search(asked, wanted)):
            by_words = self._bm25.scores(questions[row])
            proposed = (nearest[nearest >= 0], best_rows(by_words, wanted))
            chosen, parts = self._choose(asked[row], by_words, *proposed)
            count = min(n_docs, len(chosen))
            ids[row, :count], constants[row, :count] = chosen[:count], parts[:count]
        found = fetch(ids, self._store)
        products = inner_products(vectors, found.vectors)
        scores = self._weight * products + torch.from_numpy(constants).to(products.device)
        return Found(ids, found.passages, scores)

    def close(self) -> None:
        """See Finder.close."""
        self._retriever.close()

    def _choose_by_ranks(
        self, question: FloatArray, by_words: FloatArray, nearest: IntArray, worded: IntArray
    ) -> tuple[IntArray, FloatArray]:
        """Candidates [C], best first, and what their scores have besides the dense part [C]: nothing."""
        ids, _ = reciprocal_rank_fusion([nearest, worded])
        return ids, np.zeros(len(ids), dtype=np.float32)

    def _choose_by_scores(
        self, question: FloatArray, by_words: FloatArray, nearest: IntArray, worded: IntArray
    ) -> tuple[IntArray, FloatArray]:
        """Candidates [C], best first, and what their scores have besides the dense part [C]: that of BM25."""
        ids = np.union1d(nearest, worded)
        dense, bm25 = self._store.vectors(ids) @ question, by_words[ids]
        parts = (1 - self._weight) * common_scale(dense, bm25) * bm25
        order = np.argsort(-(self._weight * dense + parts), kind="stable")
        return ids[order], parts[order].astype(np.float32)


def open_finder(
    method: Method, backend: RetrievalBackend, location: SourceLocation, encoder: TextEncoder
) -> tuple[SourceInfo, Finder]:
    """Open a knowledge source and what finds passages in it by `method`; `encoder` is the question encoder.

    Words are searched by every process for itself: the map is shared on a host, and there is little to compute.

    Raises:
        InputError: no knowledge source, or one that cannot be searched so.
    """
    openers = {"dense": _open_dense, "bm25": _open_bm25, "hybrid": _open_hybrid}
    return openers[method.retriever](method, backend, location, encoder)


def _open_dense(
    method: Method, backend: RetrievalBackend, location: SourceLocation, encoder: TextEncoder
) -> tuple[SourceInfo, Finder]:
    info, retriever = backend.open(location)
    return info, DenseFinder(encoder, retriever)


def _open_bm25(
    method: Method, backend: RetrievalBackend, location: SourceLocation, encoder: TextEncoder
) -> tuple[SourceInfo, Finder]:
    source = backend.for_words().open_source(location)
    return source.info(), Bm25Finder(source)


def _open_hybrid(
    method: Method, backend: RetrievalBackend, location: SourceLocation, encoder: TextEncoder
) -> tuple[SourceInfo, Finder]:
    info, retriever = backend.for_words().open(location)
    return info, HybridFinder(encoder, retriever, method.hybrid_fusion, method.hybrid_weight)


def inner_products(vectors: torch.Tensor, passages: FloatArray) -> torch.Tensor:
    """Question vectors [B, D] · passage vectors [B, N, D] as [B, N], in float32 whatever the autocast.

    A rounded score is a wrong prior.
    """
    with torch.autocast(vectors.device.type, enabled=False):
        return (vectors.unsqueeze(1) * torch.from_numpy(passages).to(vectors.device)).sum(dim=2)
