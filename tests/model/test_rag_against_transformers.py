"""RAG-Sequence and RAG-Token on the same weights as transformers' classes: loss, gradients, answers."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import RagRetriever, RagSequenceForGeneration, RagTokenForGeneration

from ragstone.model.decoding import Decoding
from ragstone.types import Passage

QUESTIONS = ["who founded the town ?", "what is blue ?", "who was the king of the hill ?"]
ANSWERS = ["otto", "the old river", "mara was king"]
GENERATORS = [("BART", "rag_sequence"), ("BART", "rag_token"), ("T5", "rag_token")]
"""RagSequenceForGeneration cannot train or generate with a T5."""
TOLERANCE = 1e-5
"""Of the loss, and of the norm of a model's whole gradient, by which that of a parameter may be off."""
ROUNDING = 5e-5
"""Part of its own norm that float32 may take of a parameter's gradient: most of what is summed up, over passages and
positions, cancels."""
FLOOR = 1e-2
"""Part of the norm of the whole gradient, below which a parameter's own norm is no measure: the biases of keys have
gradients that are zero but for rounding."""
CLASSES = {"rag_sequence": RagSequenceForGeneration, "rag_token": RagTokenForGeneration}


@pytest.fixture(params=GENERATORS, ids="-".join)
def case(request: pytest.FixtureRequest) -> tuple[str, str]:
    return request.param


@pytest.fixture
def model_type(case: tuple[str, str]) -> str:
    return case[1]


@pytest.fixture
def checkpoint_folder(case: tuple[str, str], checkpoint_folder: Path, t5_checkpoint_folder: Path) -> Path:
    return {"BART": checkpoint_folder, "T5": t5_checkpoint_folder}[case[0]]


@pytest.fixture
def theirs(model_type: str, checkpoint_folder: Path, source_folder: Path) -> Any:
    """The tiny checkpoint in transformers' class for `model_type`, over the same knowledge source."""
    retriever = RagRetriever.from_pretrained(
        str(checkpoint_folder),
        index_name="custom",
        passages_path=str(source_folder / "my_knowledge_dataset"),
        index_path=str(source_folder / "my_knowledge_dataset_hnsw_index.faiss"),
        n_docs=3,
    )
    return CLASSES[model_type].from_pretrained(str(checkpoint_folder), retriever=retriever, n_docs=3).eval()


@pytest.mark.parametrize("precision", ["float32", "float64"])
@pytest.mark.parametrize("label_smoothing", [0.0, 0.1])
def test_loss_and_gradients(open_rag: Callable[..., Any], theirs: Any, label_smoothing: float, precision: str) -> None:
    """Theirs in float64: in float32, ours differ by our rounding; in float64, what is marginalised in float32 does."""
    ours = open_rag(label_smoothing=label_smoothing)
    if precision == "float64":
        ours.double()
    result = ours(QUESTIONS, ANSWERS)
    result.loss.backward()
    labels = ours.generator.tokenize_targets(ANSWERS, 25)
    config = ours.generator.model.config
    labels = labels.masked_fill(labels == -100, config.pad_token_id)
    start = torch.full((len(labels), 1), config.decoder_start_token_id)
    inputs = ours.question_encoder.tokenize(QUESTIONS)
    theirs.config.label_smoothing = label_smoothing
    expected = theirs.double()(
        input_ids=inputs["input_ids"],
        attention_mask=inputs["attention_mask"],
        labels=torch.cat([start, labels], dim=1),
        reduce_loss=True,
        n_docs=3,
    ).loss
    expected.backward()
    torch.testing.assert_close(result.loss.double(), expected, rtol=TOLERANCE, atol=0)
    assert (result.nll == pytest.approx(result.loss.item())) is (label_smoothing == 0)
    for mine, other in (
        (ours.question_encoder.model, theirs.rag.question_encoder),
        (ours.generator.model, theirs.rag.generator),
    ):
        found, exact = gradients(mine), gradients(other)
        assert set(found) == set(exact)
        assert len(exact) > 15
        # Log-probabilities of some nats are in steps of 5e-7 in float32, and small gradients are differences of them.
        own = ROUNDING if precision == "float32" else 2 * TOLERANCE
        whole = torch.stack([gradient.norm() for gradient in exact.values()]).norm()
        for name, gradient in exact.items():
            difference = (found[name].double() - gradient).norm()
            assert difference <= TOLERANCE * whole, name
            assert difference <= own * gradient.norm().clamp(min=FLOOR * whole), name


def gradients(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    """The gradient of every parameter that has one."""
    return {name: parameter.grad for name, parameter in model.named_parameters() if parameter.grad is not None}


@pytest.mark.parametrize(
    "options",
    [
        {"num_beams": 1},
        {"num_beams": 4},
        {"num_beams": 4, "num_return_sequences": 3},
        {"num_beams": 4, "min_length": 7},
        {"num_beams": 1, "min_length": 7},
        {"num_beams": 3, "max_length": 4},
        {"num_beams": 4, "max_new_tokens": 5},
        {"num_beams": 1, "max_new_tokens": 3},
        {"num_beams": 4, "bad_words_ids": ((7,), (12, 13), (0, 0))},
        {"num_beams": 4, "length_penalty": 2.0, "num_return_sequences": 2},
    ],
    ids=lambda options: "-".join(f"{name}={value}" for name, value in options.items()),
)
def test_answers(open_rag: Callable[..., Any], theirs: Any, model_type: str, options: dict[str, Any]) -> None:
    """Contexts of equal length: RagSequenceForGeneration.generate reads padding as if it were text."""
    ours = open_rag()
    texts = ["the river is old", "otto founded the bridge", "the king was red"]
    passages = [[Passage(i, "town", text) for i, text in enumerate(texts)]] * 2
    scores = [[0.5, 1.5, 1.0], [2.0, 0.0, 1.0]]
    questions = ["who founded the town ?", "what is by river ?"]
    contexts = [f"town / {text} // {question}" for question in questions for text in texts]
    inputs = ours.generator.tokenizer(contexts, return_tensors="pt")
    decoding = Decoding(**{"max_length": 10, **options})
    config = ours.generator.model.config
    default = () if getattr(config, "bos_token_id", None) is None else ((config.bos_token_id, config.bos_token_id),)
    wanted: dict[str, Any] = {"min_length": 1, "max_length": 10, "bad_words_ids": default, **options}
    wanted["bad_words_ids"] = [list(words) for words in wanted["bad_words_ids"]] or None
    if "max_new_tokens" in options and model_type == "rag_token":
        # RagTokenForGeneration.generate ignores max_new_tokens; max_length counts the start token too.
        wanted["max_length"] = wanted.pop("max_new_tokens") + 1
    expected = theirs.generate(
        context_input_ids=inputs["input_ids"],
        context_attention_mask=inputs["attention_mask"],
        doc_scores=torch.tensor(scores),
        n_docs=3,
        **wanted,
    )
    found = ours.generate(questions, decoding, passages=passages, scores=scores)
    labels = [list(answer.labels) for answers in found for answer in answers]
    assert labels == [_without_padding(row[1:], config.pad_token_id) for row in expected.tolist()]
    assert [len(answers) for answers in found] == [options.get("num_return_sequences", 1)] * 2


def _without_padding(labels: list[int], padding: int) -> list[int]:
    while labels and labels[-1] == padding:
        labels.pop()
    return labels
