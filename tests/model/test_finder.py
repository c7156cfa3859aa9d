"""Passages found by words, and by words and vectors: what is found, what the prior is, what learns."""

from __future__ import annotations

import dataclasses
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from ragstone.errors import InputError
from ragstone.index.bm25 import Bm25Index
from ragstone.knowledge.source import BM25_NAME, KnowledgeSource
from ragstone.model.decoding import Decoding
from ragstone.model.open import ModelRequest, open_model, refuse_unsearchable
from ragstone.retrieval.backend import InEveryProcess
from ragstone.retrieval.fusion import reciprocal_rank_fusion
from ragstone.retrieval.location import SourceLocation
from ragstone.retrieval.method import MethodRequest
from ragstone.retrieval.ray_retriever import InRayWorkers
from tests.conftest import DOCUMENTS, join_models

QUESTIONS = ["who founded the old town ?", "blue river ?"]
ANSWERS = ["otto", "the river"]
GREEDY = Decoding(1, max_length=8)
BM25, RRF, SUM = MethodRequest("bm25"), MethodRequest("hybrid", "rrf"), MethodRequest("hybrid", "sum", 0.3)


@pytest.fixture
def opened(open_rag: Callable[..., Any], worded_source: Path) -> Callable[..., Any]:
    """Opens the tiny checkpoint over the source with both indexes."""
    return lambda method, **changes: open_rag(passages_path=str(worded_source), method=method, **changes)


def word_scores(folder: Path, question: str) -> np.ndarray:
    return Bm25Index.open(folder / BM25_NAME).scores(question)


def dense_scores(model: Any, folder: Path) -> np.ndarray:
    """Question vector · passage vector for all passages: [B, 6]."""
    store = KnowledgeSource(folder).store
    with torch.no_grad():
        questions = model.question_encoder(**model.question_encoder.tokenize(QUESTIONS)).numpy()
    return questions @ store.vectors(range(len(store))).T


def test_bm25_finds_and_weighs_by_its_scores_alone(opened: Callable[..., Any], worded_source: Path) -> None:
    model = opened(BM25)
    # The question encoder is not asked: it would fail.
    model.question_encoder.forward = None
    for question, row in zip(QUESTIONS, model.retrieve(QUESTIONS, 4), strict=True):
        scores = word_scores(worded_source, question)
        order = [i for i in np.argsort(-scores, kind="stable") if scores[i] > 0][:4]
        assert [p.passage.id for p in row] == order
        assert [(p.passage.title, p.passage.text) for p in row] == [DOCUMENTS[i] for i in order]
        assert [p.score for p in row] == pytest.approx([scores[i] for i in order], rel=1e-5)
        weights = np.exp(scores[order])
        assert [p.prior for p in row] == pytest.approx((weights / weights.sum()).tolist(), rel=1e-4)
    assert model.retrieval == {"retriever": "bm25"}


def test_bm25_leaves_the_question_encoder_alone(opened: Callable[..., Any]) -> None:
    model = opened(BM25).train()
    result = model(QUESTIONS, ANSWERS)
    result.loss.backward()
    assert result.loss.isfinite() and result.passage_ids is not None and result.passage_ids.shape == (2, 3)
    assert all(not p.requires_grad and p.grad is None for p in model.question_encoder.parameters())
    assert all(p.grad.isfinite().all() for p in model.generator_model.parameters() if p.grad is not None)
    assert any(p.grad is not None for p in model.generator_model.parameters())


def test_words_that_no_passage_has(opened: Callable[..., Any], models_folder: Path) -> None:
    """Nothing is found: the question is answered by itself, and the others are as without it."""
    model = opened(BM25)
    questions = [QUESTIONS[0], "zebra xylophone ?", "?"]
    found = model.find(questions)
    assert (found.ids[1:] == -1).all() and (found.ids[0] >= 0).all()
    known, unknown, empty = (answers[0] for answers in model.generate(questions, GREEDY))
    assert known.labels == model.generate(questions[:1], GREEDY)[0][0].labels
    assert unknown.passages == empty.passages == ()
    closed = open_model(ModelRequest(str(models_folder / "generator")))
    assert unknown.labels == closed.generate(questions[1:2], GREEDY)[0][0].labels
    loss = model(questions, [*ANSWERS, "red"]).loss
    loss.backward()
    assert loss.isfinite()
    assert all(p.grad.isfinite().all() for p in model.parameters() if p.grad is not None)


def test_more_passages_than_are_found(opened: Callable[..., Any], worded_source: Path) -> None:
    with_words = int((word_scores(worded_source, "blue") > 0).sum())
    model = opened(BM25, n_docs=20)
    assert with_words == len(model.retrieve(["blue"])[0]) < 6
    assert model.find(["blue"]).ids.shape == (1, 20)
    assert [len(row) for row in opened(RRF).retrieve(QUESTIONS, 20)] == [6, 6]
    assert [len(row) for row in opened(SUM).retrieve(QUESTIONS, 20)] == [6, 6]
    assert opened(SUM).retrieve([]) == opened(BM25).retrieve([]) == []


def test_a_weighted_sum(opened: Callable[..., Any], worded_source: Path) -> None:
    """0.3 of the inner product, 0.7 of BM25's score in the inner products' deviation; and its softmax."""
    model = opened(SUM)
    for number, row in enumerate(model.retrieve(QUESTIONS, 6)):
        dense, bm25 = dense_scores(model, worded_source)[number], word_scores(worded_source, QUESTIONS[number])
        fused = 0.3 * dense + 0.7 * bm25 * dense.std() / bm25.std()
        order = np.argsort(-fused)
        assert [p.passage.id for p in row] == order.tolist()
        assert [p.score for p in row] == pytest.approx(fused[order].tolist(), rel=1e-4)
        weights = np.exp(fused[order] - fused.max())
        assert [p.prior for p in row] == pytest.approx((weights / weights.sum()).tolist(), rel=1e-3)


def test_reciprocal_ranks_choose_and_inner_products_weigh(opened: Callable[..., Any], worded_source: Path) -> None:
    model = opened(RRF)
    for number, row in enumerate(model.retrieve(QUESTIONS, 4)):
        dense, bm25 = dense_scores(model, worded_source)[number], word_scores(worded_source, QUESTIONS[number])
        worded = np.array([i for i in np.argsort(-bm25, kind="stable") if bm25[i] > 0])
        fused, _ = reciprocal_rank_fusion([np.argsort(-dense), worded])
        assert [p.passage.id for p in row] == fused[:4].tolist()
        assert [p.score for p in row] == pytest.approx(dense[fused[:4]].tolist(), rel=1e-4)
    orders = {name: [[p.passage.id for p in row] for row in opened(m).retrieve(QUESTIONS, 4)] for name, m in METHODS}
    assert len({str(order) for order in orders.values()}) == 4, "four retrievers, four rankings"


METHODS = [("dense", MethodRequest("dense")), ("bm25", BM25), ("rrf", RRF), ("sum", SUM)]


@pytest.mark.parametrize(("method", "share"), [(RRF, 1.0), (SUM, 0.3)])
def test_the_question_encoder_learns_from_a_hybrid(
    opened: Callable[..., Any], method: MethodRequest, share: float
) -> None:
    """The gradient of a score is that of the inner product, times its weight."""
    model = opened(method)
    evidence = model.find(QUESTIONS[:1], 1)
    evidence.scores.sum().backward()
    gradients = [p.grad.clone() for p in model.question_encoder.parameters() if p.grad is not None]
    model.zero_grad()
    vector = model.question_encoder(**model.question_encoder.tokenize(QUESTIONS[:1]))
    passage = model.finder._store.vectors(evidence.ids[0])
    (share * vector @ torch.from_numpy(passage[0])).sum().backward()
    expected = [p.grad for p in model.question_encoder.parameters() if p.grad is not None]
    assert any(gradient.abs().max() > 1e-4 for gradient in gradients)
    for gradient, other in zip(gradients, expected, strict=True):
        torch.testing.assert_close(gradient, other, rtol=1e-4, atol=1e-6)


def test_words_alone_know_no_encoder(
    tmp_path: Path, models_folder: Path, bm25_source: Path, source_folder: Path
) -> None:
    """A source without vectors needs no flag, and fits a model of any encoder."""
    encoder = models_folder / "question_encoder"
    rag = join_models(models_folder / "generator", encoder, tmp_path / "rag", passage_encoder_name_or_path=str(encoder))
    with pytest.raises(InputError, match="was built with the passage encoder"):
        open_model(ModelRequest(str(rag), passages_path=str(source_folder)))
    model = open_model(ModelRequest(str(rag), passages_path=str(bm25_source)))
    assert (model.retrieval, model.corpus_size) == ({"retriever": "bm25"}, 6)
    assert model.retrieve(QUESTIONS[:1])[0][0].passage.title == "town"
    for retriever in ("dense", "hybrid"):
        request = ModelRequest(str(rag), passages_path=str(bm25_source), method=MethodRequest(retriever))  # type: ignore[arg-type]
        for refused in (open_model, refuse_unsearchable):
            with pytest.raises(InputError, match=rf"{bm25_source} has no vectors"):
                refused(request)


@pytest.mark.parametrize("method", [BM25, SUM])
def test_a_checkpoint_remembers_its_retriever(
    opened: Callable[..., Any], worded_source: Path, tmp_path: Path, method: MethodRequest
) -> None:
    model = opened(method)
    model.save(tmp_path / "saved")
    again = open_model(ModelRequest(str(tmp_path / "saved")))
    assert again.retrieval == model.retrieval
    torch.testing.assert_close(again.find(QUESTIONS).scores, model.find(QUESTIONS).scores)
    other = open_model(ModelRequest(str(tmp_path / "saved"), method=MethodRequest("dense")))
    assert other.retrieval == {}
    other.save(tmp_path / "other")
    assert json.loads((tmp_path / "other" / "config.json").read_text())["ragstone"]["retrieval"] == {}
    assert open_model(ModelRequest(str(tmp_path / "other"))).retrieval == {}


def test_a_checkpoint_of_a_source_without_vectors_goes_to_transformers(
    checkpoint_folder: Path, bm25_source: Path, tmp_path: Path, model_type: str
) -> None:
    from transformers import AutoConfig

    open_model(ModelRequest(str(checkpoint_folder), passages_path=str(bm25_source))).save(tmp_path / "saved")
    config = AutoConfig.from_pretrained(tmp_path / "saved")
    assert (config.passages_path, config.index_path) == (str((bm25_source / "my_knowledge_dataset").resolve()), None)
    assert open_model(ModelRequest(str(tmp_path / "saved"))).retrieve(QUESTIONS)[0]


def test_ray_workers_search_vectors_alone() -> None:
    with pytest.raises(InputError, match="Ray workers search vectors, not words: leave out --distributed_retriever"):
        InRayWorkers(None).for_words()  # type: ignore[arg-type]


def test_a_bm25_index_of_another_source(worded_source: Path, tmp_path: Path) -> None:
    from ragstone.index.bm25 import build_bm25

    copy = Path(shutil.copytree(worded_source, tmp_path / "copy"))
    shutil.rmtree(copy / BM25_NAME)
    build_bm25(iter(["a river"]), copy / BM25_NAME)
    with pytest.raises(InputError, match=r"holds 1 passages, but .* has 6; build the knowledge source again"):
        InEveryProcess().open_source(SourceLocation(str(copy))).bm25.search(["river"], 1)


def test_what_a_source_tells(worded_source: Path, bm25_source: Path) -> None:
    both, words = KnowledgeSource(worded_source), KnowledgeSource(bm25_source)
    assert (both.has_vectors, both.has_bm25, words.has_vectors, words.has_bm25) == (True, True, False, True)
    info = words.info()
    assert (info.index_path, info.dimension, info.encoder, info.passages) == (None, 0, None, 6)
    assert dataclasses.replace(info, fingerprint="") == dataclasses.replace(words.info(), fingerprint="")
    assert info.fingerprint != both.info().fingerprint
    with pytest.raises(InputError, match="has no vectors"):
        words.index  # noqa: B018
