"""The generator's input text, joined as transformers' RagRetriever joins it."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
from transformers import RagConfig, RagRetriever

from ragstone.model.contexts import ContextFormat
from ragstone.types import NO_PASSAGE, Passage


class Characters:
    """A tokenizer that gives back its text, to see what RagRetriever would tokenize."""

    def __call__(self, texts: list[str], **_: Any) -> dict[str, Any]:
        return {"input_ids": texts, "attention_mask": None}


@pytest.mark.parametrize("prefix", ["", "answer: ", "read  "])
@pytest.mark.parametrize("title", ["river", '"Quoted"', '"half', " spaced ", ""])
def test_joined_as_in_transformers(prefix: str, title: str) -> None:
    config = RagConfig(title_sep=" / ", doc_sep=" // ")
    retriever = RagRetriever.__new__(RagRetriever)
    retriever.config, retriever.generator_tokenizer = config, Characters()
    texts = ["the river", "ends in spaces  ", " a   wide  one ", "", "ends in one "]
    questions = ["who?", "  Who   was it? ", "", " one"]
    for text, question in itertools.product(texts, questions):
        document = [{"title": [title], "text": [text]}]
        (expected,), _ = retriever.postprocess_docs(document, [question], prefix, 1)
        head, tail = ContextFormat(prefix=prefix).text(Passage(0, title, text), question)
        assert head + tail == expected
        assert tail.endswith(question.replace("  ", " "))


def test_without_a_passage_the_question_stands_alone() -> None:
    assert ContextFormat(prefix="answer: ").text(NO_PASSAGE, "Who  was it?") == ("", "answer: Who  was it?")


def test_order_of_a_batch() -> None:
    passages = [[Passage(0, "a", "b"), Passage(1, "c", "d")], [Passage(2, "e", "f"), NO_PASSAGE]]
    texts = ContextFormat().texts(passages, ["x", "y"])
    assert ["".join(parts) for parts in texts] == ["a / b // x", "c / d // x", "e / f // y", "y"]


def test_a_list_of_passages_for_each_question() -> None:
    with pytest.raises(ValueError, match="zip"):
        ContextFormat().texts([[NO_PASSAGE]], ["x", "y"])
