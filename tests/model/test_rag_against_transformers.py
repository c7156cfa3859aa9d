"""RAG-Sequence and RAG-Token on the same weights as transformers' classes: loss, gradients, answers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import RagRetriever, RagSequenceForGeneration, RagTokenForGeneration

from ragstone.model.decoding import Decoding
from ragstone.model.open import ModelRequest, open_model
from ragstone.types import Passage

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
        gradients = {name: parameter.grad for name, parameter in other.named_parameters() if parameter.grad is not None}
        # Some gradients are zero but for rounding (biases of keys): they are held to the largest of the model.
        largest = max(gradient.abs().max().item() for gradient in gradients.values())
        for name, parameter in mine.named_parameters():
            if name in gradients:
                torch.testing.assert_close(parameter.grad, gradients[name], rtol=1e-5, atol=1e-5 * largest)
                compared += 1
    assert compared > 30


@pytest.mark.parametrize("num_beams", [1, 4])
def test_answers(pair: tuple[Any, Any], num_beams: int) -> None:
    """Contexts of equal length: RagSequenceForGeneration.generate reads padding as if it were text."""
    ours, theirs = pair
    texts = ["the river is old", "otto founded the bridge", "the king was red"]
    passages = [[Passage(i, "town", text) for i, text in enumerate(texts)]] * 2
    scores = [[0.5, 1.5, 1.0], [2.0, 0.0, 1.0]]
    questions = ["who founded the town ?", "what is by river ?"]
    contexts = [f"town / {text} // {question}" for question in questions for text in texts]
    inputs = ours.generator.tokenizer(contexts, return_tensors="pt")
    expected = theirs.generate(
        context_input_ids=inputs["input_ids"],
        context_attention_mask=inputs["attention_mask"],
        doc_scores=torch.tensor(scores),
        num_beams=num_beams,
        min_length=1,
        max_length=10,
        n_docs=3,
        bad_words_ids=[[0, 0]],
    )
    found = ours.generate(questions, Decoding(num_beams=num_beams, max_length=10), passages=passages, scores=scores)
    for row, answers in zip(expected.tolist(), found, strict=True):
        wanted = row[1:]
        while wanted and wanted[-1] == 1:
            wanted.pop()
        assert list(answers[0].labels) == wanted
