"""Prompts: templates, chat templates, and what is cut of a prompt that is too long."""

from __future__ import annotations

import copy
from typing import Any

import pytest

from ragstone.errors import InputError
from ragstone.model.causal import CausalGenerator
from ragstone.model.context_ids import context_ids
from ragstone.model.contexts import ContextFormat
from ragstone.model.prompt import CHAT_TEMPLATE, DEFAULT_TEMPLATE, PromptSettings, make_wrapping
from ragstone.prompt_template import fill
from ragstone.types import NO_PASSAGE, Passage

RIVER = Passage(3, "river", "the river is blue")


def test_fields_are_filled_in_and_braces_in_them_left_alone() -> None:
    format_ = ContextFormat(template="{{T}} {title}: {text} Q {question} A")
    assert format_.text(RIVER, "what {is} blue ?") == ("{T} river: the river is blue", " Q what {is} blue ? A")


def test_a_question_before_the_passage_stays_before_it() -> None:
    head, tail = fill("{question}\n{passage}\nAnswer:", "", "", "a b", "who ?")
    assert (head, tail) == ("who ?\na b", "\nAnswer:")


def test_without_a_passage_the_prompt_begins_with_the_rest() -> None:
    format_ = ContextFormat(template=DEFAULT_TEMPLATE, prefix="p: ")
    assert format_.text(NO_PASSAGE, "who ?") == ("", "p: Question: who ?\nAnswer:")


@pytest.mark.parametrize(
    ("template", "message"),
    [
        ("{question}", r"must have \{question\} once, and \{passage\} or \{text\}"),
        ("{text} {question} {question}", r"must have \{question\} once"),
        ("{text} {answer} {question}", r"has the field \{answer\}"),
        ("{text {question}", "is no template"),
        ("{} {question}", r"has the field \{\}"),
    ],
)
def test_no_templates(template: str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        PromptSettings(template)


def test_what_suits_a_tokenizer(generator_tokenizer: Any) -> None:
    assert PromptSettings.suiting(True) == PromptSettings(CHAT_TEMPLATE, chat=True)
    assert make_wrapping(generator_tokenizer, PromptSettings()).blank == " "
    assert make_wrapping(generator_tokenizer, PromptSettings("{text} {question}\n")).blank == ""
    with pytest.raises(InputError, match="has no chat template"):
        make_wrapping(generator_tokenizer, PromptSettings(CHAT_TEMPLATE, chat=True))


CHAT = (
    "{% for m in messages %}<s> {{ m.role }} : {{ m.content }} </s>\n{% endfor %}"
    "{% if add_generation_prompt %}<s> answer :{% if not enable_thinking %} stone{% endif %}{% endif %}"
)


def test_a_chat_template_stands_around_the_prompt(llama_folder: Any) -> None:
    """Start tokens once, the end that the template writes, no thinking aloud; as apply_chat_template writes it."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(llama_folder)
    tokenizer.chat_template = CHAT
    wrapping = make_wrapping(tokenizer, PromptSettings(CHAT_TEMPLATE, chat=True))
    assert (wrapping.blank, wrapping.end, wrapping.opens) == ("", tokenizer.eos_token_id, False)
    generator = CausalGenerator(AutoModelForCausalLM.from_pretrained(llama_folder), tokenizer, wrapping)
    (ids,) = generator.encode([("the river is blue", " what is blue ?")], 64).ids
    message = [{"role": "user", "content": "the river is blue what is blue ?"}]
    expected = tokenizer.apply_chat_template(message, add_generation_prompt=True, tokenize=False, enable_thinking=False)
    assert ids == tokenizer(expected, add_special_tokens=False)["input_ids"]
    assert generator.tokenize_targets(["otto"], 8).tolist() == [[*tokenizer("otto")["input_ids"][1:]]]


def test_a_blank_before_the_answer_is_the_answers(generator_tokenizer: Any) -> None:
    tokenizer = copy.deepcopy(generator_tokenizer)
    tokenizer.chat_template = CHAT.replace("<s> answer :", "<s> answer : ").replace(" stone", "")
    wrapping = make_wrapping(tokenizer, PromptSettings(CHAT_TEMPLATE, chat=True))
    assert (wrapping.after[-8:], wrapping.blank) == ("answer :", " ")


def test_of_a_prompt_without_room_the_end_stays(generator_tokenizer: Any) -> None:
    (ids,) = context_ids(generator_tokenizer, [("the river", " who founded the town ? /")], 5, closes=False)
    assert ids == generator_tokenizer("the town ? /")["input_ids"][:-1]


@pytest.mark.parametrize("limit", [12, 9, 6])
def test_a_long_passage_is_cut_and_neither_question_nor_end(generator_tokenizer: Any, limit: int) -> None:
    head, tail = "the river of the old town is blue", " // who ? /"
    (ids,) = context_ids(generator_tokenizer, [(head, tail)], limit, closes=False)
    kept = " ".join([*head.split()[: limit - 5], *tail.split()])
    assert ids == generator_tokenizer(kept)["input_ids"][:-1]
    assert len(ids) == min(limit, 13)
