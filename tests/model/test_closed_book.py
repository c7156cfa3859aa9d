"""The closed-book model against transformers' BART and T5: loss, answers, saving."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoConfig, AutoModelForSeq2SeqLM, AutoTokenizer

from ragstone.errors import InputError
from ragstone.model.closed_book import recorded_context
from ragstone.model.contexts import ContextFormat
from ragstone.model.decoding import Decoding
from ragstone.model.open import ModelRequest, open_model

QUESTIONS = ["who founded the town ?", "what is by the old river ?"]
ANSWERS = ["otto", "the old blue bridge"]


@pytest.fixture(params=["bart", "t5"])
def folder(request: pytest.FixtureRequest, models_folder: Path, t5_folder: Path) -> Path:
    return {"bart": models_folder / "generator", "t5": t5_folder}[request.param]


@pytest.fixture
def theirs(folder: Path) -> Any:
    return AutoModelForSeq2SeqLM.from_pretrained(folder).eval()


def test_loss_and_gradients(folder: Path, theirs: Any) -> None:
    ours = open_model(ModelRequest(str(folder)))
    result = ours(QUESTIONS, ANSWERS)
    result.loss.backward()
    tokenizer = AutoTokenizer.from_pretrained(folder)
    inputs = tokenizer(QUESTIONS, padding=True, return_tensors="pt")
    targets = tokenizer(text_target=ANSWERS, padding=True, return_tensors="pt")
    labels = targets["input_ids"].masked_fill(targets["attention_mask"] == 0, -100)
    mean = theirs(input_ids=inputs["input_ids"], attention_mask=inputs["attention_mask"], labels=labels).loss
    tokens = int(targets["attention_mask"].sum())
    (mean * tokens).backward()
    torch.testing.assert_close(result.loss, mean * tokens, rtol=1e-5, atol=0)
    assert (result.target_tokens, result.questions, result.passage_ids) == (tokens, 2, None)
    pairs = list(zip(ours.generator_model.named_parameters(), theirs.parameters(), strict=True))
    size = torch.stack([other.grad.norm() for _, other in pairs if other.grad is not None]).norm().item()
    for (name, mine), other in pairs:
        if other.grad is not None:
            torch.testing.assert_close(mine.grad, other.grad, rtol=1e-5, atol=1e-5 * size, msg=name)


def test_label_smoothing(folder: Path, theirs: Any) -> None:
    """Against torch's cross-entropy with the same smoothing."""
    ours = open_model(ModelRequest(str(folder), label_smoothing=0.2))
    result = ours(QUESTIONS, ANSWERS)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    inputs = tokenizer(QUESTIONS, padding=True, return_tensors="pt")
    labels = ours.generator.tokenize_targets(ANSWERS, 25)
    logits = theirs(input_ids=inputs["input_ids"], attention_mask=inputs["attention_mask"], labels=labels).logits
    expected = torch.nn.functional.cross_entropy(
        logits.flatten(0, 1), labels.flatten(), label_smoothing=0.2, reduction="sum"
    )
    torch.testing.assert_close(result.loss, expected, rtol=1e-5, atol=0)


@pytest.mark.parametrize(
    "decoding",
    [
        Decoding(1, max_length=9),
        Decoding(4, max_length=9, num_return_sequences=3),
        Decoding(4, min_length=5, max_length=9, length_penalty=2.0, num_return_sequences=4),
        Decoding(3, max_new_tokens=4),
    ],
    ids=["greedy", "beams", "long answers", "max_new_tokens"],
)
def test_answers_in_the_order_of_generate(folder: Path, theirs: Any, decoding: Decoding) -> None:
    ours = open_model(ModelRequest(str(folder)))
    tokenizer = AutoTokenizer.from_pretrained(folder)
    inputs = tokenizer(QUESTIONS, padding=True, return_tensors="pt")
    limit = (
        {"max_length": decoding.max_length}
        if decoding.max_new_tokens is None
        else {"max_new_tokens": decoding.max_new_tokens}
    )
    if decoding.length_penalty is not None:
        limit["length_penalty"] = decoding.length_penalty
    bos = getattr(theirs.config, "bos_token_id", None)
    rows = theirs.generate(
        input_ids=inputs["input_ids"],
        attention_mask=inputs["attention_mask"],
        num_beams=decoding.num_beams,
        num_return_sequences=decoding.num_return_sequences,
        min_length=decoding.min_length,
        bad_words_ids=None if bos is None else [[bos, bos]],
        **limit,
    )
    end = theirs.config.eos_token_id
    expected = [row[: row.index(end) + 1] if end in row else row for row in rows[:, 1:].tolist()]
    found = [list(answer.labels) for answers in ours.generate(QUESTIONS, decoding) for answer in answers]
    assert found == expected
    texts = [answer.text for answers in ours.generate(QUESTIONS, decoding) for answer in answers]
    assert texts == [text.strip() for text in tokenizer.batch_decode(rows, skip_special_tokens=True)]


def test_a_prefix_stands_before_the_question_and_is_never_cut(folder: Path) -> None:
    plain = open_model(ModelRequest(str(folder)))
    prefixed = open_model(ModelRequest(str(folder), prefix="old town "))
    expected = plain.generate([f"old town {question}" for question in QUESTIONS], Decoding(2, max_length=8))
    assert prefixed.generate(QUESTIONS, Decoding(2, max_length=8)) == expected
    # A length of six tokens cuts the end of the question, with as many special tokens as the generator has.
    short = open_model(ModelRequest(str(folder), prefix="old town ", max_source_length=6))
    words = 4 if plain.model_type == "bart" else 5
    cut = " ".join(f"old town {QUESTIONS[0]}".split()[:words])
    assert short.generate(QUESTIONS[:1], Decoding(2, max_length=8)) == plain.generate([cut], Decoding(2, max_length=8))


def test_saved_model_opens_in_transformers_and_here(tmp_path: Path, folder: Path) -> None:
    model = open_model(ModelRequest(str(folder), prefix="old "))
    model.save(tmp_path / "saved")
    again = open_model(ModelRequest(str(tmp_path / "saved"), model_type=model.model_type))
    assert again.fingerprint() == model.fingerprint()
    assert again.generate(QUESTIONS, Decoding(2)) == model.generate(QUESTIONS, Decoding(2))
    theirs, report = AutoModelForSeq2SeqLM.from_pretrained(tmp_path / "saved", output_loading_info=True)
    assert not report["missing_keys"]
    assert theirs.config.prefix == "old "


def test_prefix_and_length_are_recorded(tmp_path: Path, folder: Path) -> None:
    """As entries of config.json beside which transformers opens the model as it did before."""
    assert recorded_context(AutoConfig.from_pretrained(folder)) == ContextFormat(prefix="", max_length=128)
    model = open_model(ModelRequest(str(folder), prefix="old ", max_source_length=6))
    model.save(tmp_path / "saved")
    saved = recorded_context(AutoConfig.from_pretrained(tmp_path / "saved"))
    assert saved == model.context == ContextFormat(prefix="old ", max_length=6)
    before, after = (json.loads((path / "config.json").read_text()) for path in (folder, tmp_path / "saved"))
    assert {name for name in after if after[name] != before.get(name)} == {"prefix", "ragstone"}
    again = open_model(ModelRequest(str(tmp_path / "saved")))
    assert (again.context, again.fingerprint()) == (model.context, model.fingerprint())
    changed = open_model(ModelRequest(str(tmp_path / "saved"), max_source_length=9, prefix=""))
    assert changed.context == ContextFormat(prefix="", max_length=9)


def test_it_retrieves_nothing(folder: Path) -> None:
    model = open_model(ModelRequest(str(folder)))
    assert model.n_docs == 0
    assert model.source_fingerprint() is None
    assert model.generate([], Decoding()) == []
    assert model.generate(QUESTIONS, Decoding(1))[0][0].passages == ()
    with pytest.raises(InputError, match="retrieves nothing; take a rag_sequence or rag_token checkpoint"):
        model.retrieve(QUESTIONS)


def test_another_type_than_the_folders_is_refused(folder: Path) -> None:
    with pytest.raises(InputError, match="not a rag_token checkpoint; join a question encoder and a generator"):
        open_model(ModelRequest(str(folder), model_type="rag_token"))
    other = "t5" if open_model(ModelRequest(str(folder))).model_type == "bart" else "bart"
    with pytest.raises(InputError, match=f"not {other}"):
        open_model(ModelRequest(str(folder), model_type=other))


def test_weights_in_half_precision_are_used_in_full(tmp_path: Path, folder: Path, theirs: Any) -> None:
    """A folder in float16 opens as float16 unless one says otherwise; training and scores need more."""
    theirs.half().save_pretrained(tmp_path / "half")
    AutoTokenizer.from_pretrained(folder).save_pretrained(tmp_path / "half")
    assert AutoModelForSeq2SeqLM.from_pretrained(tmp_path / "half").dtype == torch.float16
    model = open_model(ModelRequest(str(tmp_path / "half")))
    assert {parameter.dtype for parameter in model.generator_model.parameters()} == {torch.float32}
    assert model(QUESTIONS, ANSWERS).loss.isfinite()
