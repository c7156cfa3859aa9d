"""A RAG checkpoint whose generator's tokenizer has a chat template: joined, trained, saved and opened again."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from ragstone.model.decoding import Decoding
from ragstone.model.open import ModelRequest, open_model
from ragstone.model.prompt import CHAT_TEMPLATE

QUESTIONS = ["who founded the town ?", "what is blue ?", "who was king of the hill ?"]
ANSWERS = ["otto", "the river", "mara"]
DECODING = Decoding(num_beams=3, num_return_sequences=3, max_length=8)


@pytest.mark.parametrize("kind", ["rag_sequence", "rag_token"])
def test_trained_saved_and_opened_again(kind: str, chat_checkpoint: Path, source_folder: Path, tmp_path: Path) -> None:
    """Answers end with the template's own token, are those of each question alone, and the same once more."""
    request = ModelRequest(str(chat_checkpoint), model_type=kind, passages_path=str(source_folder), n_docs=3)
    model: Any = open_model(request)
    loss = model(QUESTIONS, ANSWERS).loss
    torch.testing.assert_close(
        loss, expected_loss(model, chat_checkpoint.parent / "generator", kind), rtol=1e-5, atol=0
    )
    optimizer = torch.optim.Adam(model.parameters(), lr=0.02)
    for _ in range(30):
        optimizer.zero_grad()
        model.train()(QUESTIONS, ANSWERS).loss.backward()
        optimizer.step()
    model.eval()
    found = model.generate(QUESTIONS, DECODING)
    assert [row[0].text for row in found] == ANSWERS
    turn = model.generator.tokenizer.convert_tokens_to_ids("<turn>")
    assert {row[0].labels[-1] for row in found} == {turn}
    for question, together in zip(QUESTIONS, found, strict=True):
        (alone,) = model.generate([question], DECODING)
        assert [answer.labels for answer in together] == [answer.labels for answer in alone]
    model.save(tmp_path / "again")
    again: Any = open_model(ModelRequest(str(tmp_path / "again")))
    assert again.generator.wrapping == model.generator.wrapping
    assert again.generate(QUESTIONS, DECODING) == found


def expected_loss(model: Any, generator: Path, kind: str) -> torch.Tensor:
    """What is minimised, written out with transformers alone: its own model, template and tokenizer."""
    theirs, tokenizer = AutoModelForCausalLM.from_pretrained(generator), AutoTokenizer.from_pretrained(generator)
    turn = tokenizer.convert_tokens_to_ids("<turn>")
    total = torch.zeros(())
    for question, answer in zip(QUESTIONS, ANSWERS, strict=True):
        passages = model.retrieve([question])[0]
        prior = torch.tensor([found.score for found in passages]).log_softmax(dim=0)
        target = [*tokenizer(answer, add_special_tokens=False)["input_ids"], turn]
        rows = []
        for found in passages:
            said = CHAT_TEMPLATE.format(passage=f"{found.passage.title} / {found.passage.text}", question=question)
            prompt = tokenizer.apply_chat_template(
                [{"role": "user", "content": said}], add_generation_prompt=True, enable_thinking=False, tokenize=False
            )
            ids = tokenizer(prompt, add_special_tokens=False)["input_ids"]
            logits = theirs(torch.tensor([[*ids, *target[:-1]]])).logits[0, len(ids) - 1 :]
            rows.append(logits.log_softmax(dim=-1)[range(len(target)), target])
        tokens = torch.stack(rows)
        if kind == "rag_sequence":
            total = total - (prior + tokens.sum(dim=1)).logsumexp(dim=0)
        else:
            total = total - (prior[:, None] + tokens).logsumexp(dim=0).sum()
    return total
