"""RAG-Sequence and RAG-Token on the same weights as transformers' classes: loss, gradients, answers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import RagRetriever, RagSequenceForGeneration, RagTokenForGeneration

from ragstone.model.decoding import Decoding
from ragstone.model.open import ModelRequest, open_model

QUESTIONS = ["who founded the town ?", "what is blue ?", "who was the king of the hill ?"]
ANSWERS = ["otto", "the old river", "mara was king"]
CLASSES = {"rag_sequence": RagSequenceForGeneration, "rag_token": RagTokenForGeneration}


@pytest.fixture(params=["rag_sequence", "rag_token"])
def pair(request: pytest.FixtureRequest, checkpoint_folder: Path, source_folder: Path) -> tuple[Any, Any]:
    """The same checkpoint in Ragstone and in transformers, over the same knowledge source."""
    ours = open_model(
        ModelRequest(str(checkpoint_folder), model_type=request.param, passages_path=str(source_folder), n_docs=3)
    )
    retriever = RagRetriever.from_pretrained(
        str(checkpoint_folder),
        index_name="custom",
        passages_path=str(source_folder / "my_knowledge_dataset"),
        index_path=str(source_folder / "my_knowledge_dataset_hnsw_index.faiss"),
        n_docs=3,
    )
    theirs = CLASSES[request.param].from_pretrained(str(checkpoint_folder), retriever=retriever, n_docs=3).eval()
    return ours, theirs


def test_loss_and_gradients(pair: tuple[Any, Any]) -> None:
    ours, theirs = pair
    loss = ours(QUESTIONS, ANSWERS)
    loss.loss.backward()
    labels = ours.generator.tokenize_targets(ANSWERS, 25).masked_fill_(
        ours.generator.tokenize_targets(ANSWERS, 25) == -100, 1
    )
    start = torch.full((len(labels), 1), 2)
    inputs = ours.question_encoder.tokenize(QUESTIONS)
    expected = theirs(
        input_ids=inputs["input_ids"],
        attention_mask=inputs["attention_mask"],
        labels=torch.cat([start, labels], dim=1),
        reduce_loss=True,
        n_docs=3,
    ).loss
    expected.backward()
    torch.testing.assert_close(loss.loss, expected, rtol=1e-5, atol=0)
    compared = 0
    for mine, other in (
        (ours.question_encoder.model, theirs.rag.question_encoder),
        (ours.generator.model, theirs.rag.generator),
    ):
        gradients = dict(other.named_parameters())
        for name, parameter in mine.named_parameters():
            if gradients[name].grad is not None:
                scale = gradients[name].grad.abs().max().item()
                torch.testing.assert_close(parameter.grad, gradients[name].grad, rtol=1e-4, atol=1e-5 * scale + 1e-9)
                compared += 1
    assert compared > 30


@pytest.mark.parametrize("num_beams", [1, 4])
def test_answers(pair: tuple[Any, Any], num_beams: int) -> None:
    ours, theirs = pair
    inputs = ours.question_encoder.tokenize(QUESTIONS)
    expected = theirs.generate(
        input_ids=inputs["input_ids"],
        attention_mask=inputs["attention_mask"],
        num_beams=num_beams,
        min_length=1,
        max_length=10,
        n_docs=3,
        bad_words_ids=[[0, 0]],
    )
    found = ours.answer(QUESTIONS, Decoding(num_beams=num_beams, max_length=10))
    for row, answers in zip(expected.tolist(), found, strict=True):
        wanted = row[1:]
        while wanted and wanted[-1] == 1:
            wanted.pop()
        assert list(answers[0].labels) == wanted
