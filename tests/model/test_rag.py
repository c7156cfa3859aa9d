"""RagModel: passages that the caller retrieved, what comes with an answer, what a batch reports."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

from ragstone.errors import InputError
from ragstone.model.decoding import Decoding
from ragstone.types import NO_PASSAGE, Passage

QUESTIONS = ["who founded the town ?", "what is the river ?"]
GREEDY = Decoding(1, max_length=8)
RIVER, OTTO = Passage(3, "river", "the river is blue"), Passage(-1, "town", "otto founded the town")


def test_given_passages_answer_as_retrieved_ones_do(open_rag: Callable[..., Any]) -> None:
    model = open_rag()
    evidence = model.find(QUESTIONS)
    given = model.generate(QUESTIONS, GREEDY, passages=evidence.passages, scores=evidence.scores.tolist())
    for (mine,), (other,) in zip(given, model.generate(QUESTIONS, GREEDY), strict=True):
        assert mine.labels == other.labels
        assert mine.score == pytest.approx(other.score, rel=1e-5)
        assert [p.passage for p in mine.passages] == [p.passage for p in other.passages]


def test_lists_of_unequal_length(open_rag: Callable[..., Any]) -> None:
    """Also an empty one, whole numbers, arrays, and passages that no source holds."""
    model = open_rag()
    for scores in ([[1, 0], []], [np.array([1.0, 0.0]), np.array([])]):
        (first,), (second,) = model.generate(QUESTIONS, GREEDY, passages=[[RIVER, OTTO], []], scores=scores)
        assert [p.passage for p in first.passages] == [RIVER, OTTO]
        assert [p.score for p in first.passages] == [1.0, 0.0]
        assert [p.prior for p in first.passages] == pytest.approx([0.7310586, 0.2689414])
        assert sum(p.posterior for p in first.passages) == pytest.approx(1)
        assert second.passages == ()
        assert second.score < 0


@pytest.mark.parametrize(
    ("passages", "scores", "message"),
    [
        ([[RIVER], [OTTO]], None, "2 questions need as many lists of passages and as many lists of scores; give both"),
        (None, [[1.0], [2.0]], "give both"),
        ([[RIVER]], [[1.0]], "2 questions need as many lists"),
        ([[RIVER], [OTTO]], [[1.0], [1.0, 2.0]], r"question 'what is the river \?' has 1 passage but 2 scores"),
        ([[RIVER, OTTO], []], [[1.0], []], r"question 'who founded the town \?' has 2 passages but 1 score;"),
        ([[RIVER], [OTTO]], [[1.0], [float("nan")]], "score is not finite"),
        ([[RIVER], [OTTO]], [[float("-inf")], [0.0]], "score is not finite"),
    ],
)
def test_passages_and_scores_that_do_not_fit(
    open_rag: Callable[..., Any], passages: Any, scores: Any, message: str
) -> None:
    with pytest.raises(InputError, match=message):
        open_rag().generate(QUESTIONS, GREEDY, passages=passages, scores=scores)


def test_no_questions(open_rag: Callable[..., Any]) -> None:
    model = open_rag()
    assert model.generate([], GREEDY) == []
    assert model.generate([], GREEDY, passages=[], scores=[]) == []
    assert model.retrieve([]) == []


def test_without_a_source_passages_must_be_given(open_rag: Callable[..., Any]) -> None:
    model = open_rag()
    model.finder = None
    with pytest.raises(InputError, match="has no knowledge source; give one with --passages_path"):
        model.generate(QUESTIONS, GREEDY)
    assert model.generate(QUESTIONS[:1], GREEDY, passages=[[RIVER]], scores=[[0.0]])[0][0].labels


def test_an_answer_tells_prior_and_posterior(open_rag: Callable[..., Any], model_type: str) -> None:
    """The posterior is Bayes' rule over the likelihoods that each passage gives alone."""
    model = open_rag()
    passages = [RIVER, OTTO, Passage(7, "hill", "a red hill")]
    scores = [0.4, -0.3, 0.1]
    (answer,) = model.generate(QUESTIONS[:1], GREEDY, passages=[passages], scores=[scores])[0]
    prior = np.exp(scores) / np.exp(scores).sum()
    assert [p.prior for p in answer.passages] == pytest.approx(prior.tolist(), rel=1e-5)
    labels = torch.tensor([answer.labels])
    contexts = model.generator.encode(model.options.context.texts([passages], QUESTIONS[:1]), 300)
    with torch.no_grad():
        logits = model.generator.target_logits(contexts, labels.expand(3, 1, -1)).view(3, len(answer.labels), -1)
    tokens = logits.softmax(dim=-1)[:, range(labels.shape[1]), labels[0]].numpy()
    if len(answer.labels) > 1 and answer.labels[0] == 0:
        tokens = tokens[:, 1:]
    if model_type == "rag_sequence":
        joint = prior * tokens.prod(axis=1)
        assert answer.score == pytest.approx(np.log(joint.sum()), rel=1e-4)
        expected = joint / joint.sum()
    else:
        joint = prior[:, None] * tokens
        assert answer.score == pytest.approx(np.log(joint.sum(axis=0)).sum(), rel=1e-4)
        expected = (joint / joint.sum(axis=0)).mean(axis=1)
    assert [p.posterior for p in answer.passages] == pytest.approx(expected.tolist(), abs=1e-4)


def test_retrieve_is_the_retrieval_of_generate(open_rag: Callable[..., Any]) -> None:
    model = open_rag()
    for row, (answer,) in zip(model.retrieve(QUESTIONS), model.generate(QUESTIONS, GREEDY), strict=True):
        for mine, other in zip(row, answer.passages, strict=True):
            assert (mine.passage, mine.score, mine.prior) == (other.passage, other.score, other.prior)
            assert np.isnan(mine.posterior)
        assert [p.score for p in row] == sorted((p.score for p in row), reverse=True)


def test_what_a_batch_reports(open_rag: Callable[..., Any]) -> None:
    model = open_rag()
    result = model(QUESTIONS, ["otto", "old blue river"])
    assert result.questions == 2
    assert result.target_tokens == 3 + 5
    assert result.nll == pytest.approx(result.loss.item())
    assert result.passage_ids is not None and result.passage_ids.tolist() == model.find(QUESTIONS).ids.tolist()
    priors = torch.tensor([[p.prior for p in row] for row in model.retrieve(QUESTIONS)])
    assert result.prior_entropy == pytest.approx(-(priors * priors.log()).sum().item(), rel=1e-4)
    assert 0 <= result.posterior_entropy <= 2 * np.log(3)


def test_a_frozen_question_encoder_learns_nothing(open_rag: Callable[..., Any]) -> None:
    model = open_rag(freeze_question_encoder=True).train()
    model(QUESTIONS, ["otto", "blue"]).loss.backward()
    assert all(parameter.grad is None for parameter in model.question_encoder.parameters())
    assert any(parameter.grad is not None for parameter in model.generator_model.parameters())


def test_samples_of_a_model(open_rag: Callable[..., Any]) -> None:
    """As many as asked for, repeatable by seed, each with score and posterior."""
    model = open_rag()
    decoding = Decoding(1, max_length=8, do_sample=True, num_return_sequences=7, seed=3)
    found = model.generate(QUESTIONS, decoding)
    assert [len(answers) for answers in found] == [7, 7]
    assert found == model.generate(QUESTIONS, decoding)
    assert len({answer.labels for answers in found for answer in answers}) > 3
    for answer in found[0]:
        assert sum(p.posterior for p in answer.passages) == pytest.approx(1)


def test_beams_that_sample(open_rag: Callable[..., Any]) -> None:
    decoding = Decoding(3, max_length=8, do_sample=True, num_return_sequences=2, seed=3, temperature=1.5, top_p=0.9)
    found = open_rag().generate(QUESTIONS, decoding)
    assert [len(answers) for answers in found] == [2, 2]
    for answers in found:
        assert answers[0].labels != answers[1].labels


def test_more_answers_than_beams(open_rag: Callable[..., Any], model_type: str) -> None:
    """RAG-Token has its beams to choose from, RAG-Sequence those of all passages."""
    model, decoding = open_rag(), Decoding(2, max_length=8, num_return_sequences=4)
    if model_type == "rag_token":
        with pytest.raises(InputError, match="num_return_sequences 4 is above num_beams 2"):
            model.generate(QUESTIONS, decoding)
    else:
        for answers in model.generate(QUESTIONS, decoding):
            assert 2 < len(answers) <= 4
            assert [a.score for a in answers] == sorted((a.score for a in answers), reverse=True)


def test_no_passage_is_never_shown(open_rag: Callable[..., Any]) -> None:
    (answer,) = open_rag().generate(QUESTIONS[:1], GREEDY, n_docs=20)[0]
    assert len(answer.passages) == 6
    assert NO_PASSAGE not in [p.passage for p in answer.passages]


@pytest.mark.parametrize(
    "decoding", [Decoding(3, max_length=8, num_return_sequences=3), Decoding(1, max_length=8, do_sample=True, seed=1)]
)
def test_candidates_are_scored_in_runs_of_any_length(
    open_rag: Callable[..., Any], monkeypatch: pytest.MonkeyPatch, decoding: Decoding
) -> None:
    """However many a context has, no run takes more target tokens than it may, or than one candidate has."""
    model = open_rag()
    if decoding.do_sample:
        decoding = dataclasses.replace(decoding, num_return_sequences=30)
    expected = model.generate(QUESTIONS, decoding)
    sizes = []
    inner = model.generator.target_logits

    def watched(contexts: Any, labels: torch.Tensor, places: torch.Tensor) -> torch.Tensor:
        sizes.append(labels.numel())
        return inner(contexts, labels, places)

    monkeypatch.setattr(model.generator, "target_logits", watched)
    monkeypatch.setattr("ragstone.model.reader.TOKENS_AT_ONCE", 20)
    found = model.generate(QUESTIONS, decoding)
    assert len(sizes) > 3 and max(sizes) <= 20
    for mine, other in zip(found, expected, strict=True):
        assert [answer.labels for answer in mine] == [answer.labels for answer in other]
        assert [answer.score for answer in mine] == pytest.approx([answer.score for answer in other], rel=1e-5)


def test_candidates_share_the_scores_behind_what_they_begin_with(
    open_rag: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """One row over the vocabulary for each beginning and context, and the scores that each candidate has alone."""
    model = open_rag()
    inner = model.generator.target_logits
    computed: list[int] = []

    def watched(contexts: Any, labels: torch.Tensor, places: torch.Tensor) -> torch.Tensor:
        answers = [[[label for label in answer if label >= 0] for answer in rows] for rows in labels.tolist()]
        beginnings = [{tuple(row[:i]) for row in rows for i in range(len(row))} for rows in answers]
        logits = inner(contexts, labels, places)
        computed.append(len(logits))
        assert len(logits) == sum(map(len, beginnings)) < int((labels >= 0).sum())
        return logits

    monkeypatch.setattr(model.generator, "target_logits", watched)
    found = model.generate(QUESTIONS, Decoding(3, max_length=8, num_return_sequences=3))
    assert computed
    monkeypatch.setattr(model.generator, "target_logits", inner)
    monkeypatch.setattr("ragstone.model.reader.TOKENS_AT_ONCE", 1)
    alone = model.generate(QUESTIONS, Decoding(3, max_length=8, num_return_sequences=3))
    for mine, other in zip(found, alone, strict=True):
        assert [answer.labels for answer in mine] == [answer.labels for answer in other]
        assert [answer.score for answer in mine] == pytest.approx([answer.score for answer in other], rel=1e-5)
