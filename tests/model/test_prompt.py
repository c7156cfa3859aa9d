"""Prompts: templates, chat templates, and what is cut of a prompt that is too long."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
from transformers import LlamaConfig

from ragstone.errors import InputError
from ragstone.model.architecture import choose_prompt
from ragstone.model.causal import CausalGenerator
from ragstone.model.checkpoint import load_checkpoint
from ragstone.model.context_tokenizer import ContextTokenizer
from ragstone.model.contexts import ContextFormat
from ragstone.model.prompt import CHAT_TEMPLATE, DEFAULT_TEMPLATE, PromptSettings, make_wrapping
from ragstone.prompt_template import fill
from ragstone.types import NO_PASSAGE, Passage
from tests.conftest import CHAT

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
        ("{text {question}", "is not a template"),
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


def test_a_chat_template_stands_around_the_prompt(llama_folder: Any) -> None:
    """Start tokens once, the end that the template writes, no thinking aloud; as apply_chat_template writes it."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(llama_folder)
    tokenizer.chat_template = CHAT.replace("<turn>", "</s>")
    wrapping = make_wrapping(tokenizer, PromptSettings(CHAT_TEMPLATE, chat=True))
    assert (wrapping.blank, wrapping.end, wrapping.opens) == ("", tokenizer.eos_token_id, False)
    generator = CausalGenerator(AutoModelForCausalLM.from_pretrained(llama_folder), tokenizer, wrapping)
    (ids,) = generator.encode([("the river is blue", " what is blue ?")], 64).ids
    message = [{"role": "user", "content": "the river is blue what is blue ?"}]
    expected = tokenizer.apply_chat_template(message, add_generation_prompt=True, tokenize=False, enable_thinking=False)
    assert ids == tokenizer(expected, add_special_tokens=False)["input_ids"]
    assert generator.tokenize_targets(["otto"], 8).tolist() == [[*tokenizer("otto")["input_ids"][1:]]]


def test_a_turn_ends_with_a_token_of_its_own(chat_checkpoint: Path) -> None:
    """Targets end with it, and answers at it or at the tokenizer's end of text."""
    generator: Any = load_checkpoint(str(chat_checkpoint)).generator
    turn, end = generator.tokenizer.convert_tokens_to_ids(["<turn>", "</s>"])
    assert turn != end == generator.tokenizer.eos_token_id
    assert generator.wrapping.end == turn
    otto = generator.tokenizer("otto", add_special_tokens=False)["input_ids"]
    assert generator.tokenize_targets(["otto"], 8).tolist() == [[*otto, turn]]
    assert generator.text([*otto, turn]) == generator.text([*otto, end]) == "otto"


RECORDED = {"template": "{passage} : {question}", "chat": False}
CHATTING = {"template": "{question} of {text}", "chat": True}
OTHER = "{title} {text} {question}"


@pytest.mark.parametrize(
    ("talks", "recorded", "template", "chat", "expected"),
    [
        (False, None, None, None, (DEFAULT_TEMPLATE, False)),
        (True, None, None, None, (CHAT_TEMPLATE, True)),
        (True, None, None, False, (DEFAULT_TEMPLATE, False)),
        (True, None, OTHER, None, (OTHER, False)),
        (True, None, OTHER, True, (OTHER, True)),
        (True, RECORDED, None, None, (RECORDED["template"], False)),
        (True, RECORDED, None, False, (RECORDED["template"], False)),
        (True, RECORDED, None, True, (CHAT_TEMPLATE, True)),
        (True, RECORDED, OTHER, None, (OTHER, False)),
        (True, CHATTING, None, None, (CHATTING["template"], True)),
        (True, CHATTING, None, True, (CHATTING["template"], True)),
        (True, CHATTING, None, False, (DEFAULT_TEMPLATE, False)),
        (True, CHATTING, OTHER, None, (OTHER, False)),
        (True, CHATTING, OTHER, True, (OTHER, True)),
    ],
)
def test_what_is_asked_for_goes_before_what_is_recorded(
    generator_tokenizer: Any, talks: bool, recorded: Any, template: Any, chat: Any, expected: tuple[str, bool]
) -> None:
    tokenizer = copy.deepcopy(generator_tokenizer)
    tokenizer.chat_template = CHAT if talks else None
    chosen = choose_prompt(LlamaConfig(), tokenizer, recorded, template, chat)
    assert chosen == PromptSettings(*expected)


def test_a_blank_before_the_answer_is_the_answers(generator_tokenizer: Any) -> None:
    tokenizer = copy.deepcopy(generator_tokenizer)
    tokenizer.chat_template = CHAT.replace("<s> answer :", "<s> answer : ").replace(" stone", "")
    wrapping = make_wrapping(tokenizer, PromptSettings(CHAT_TEMPLATE, chat=True))
    assert (wrapping.after[-8:], wrapping.blank) == ("answer :", " ")


def test_of_a_prompt_without_room_the_end_stays(generator_tokenizer: Any) -> None:
    (ids,) = ContextTokenizer(generator_tokenizer).ids([("the river", " who founded the town ? /")], 5, closes=False)
    assert ids == generator_tokenizer("the town ? /")["input_ids"][:-1]


@pytest.mark.parametrize("limit", [12, 9, 6])
def test_a_long_passage_is_cut_and_neither_question_nor_end(generator_tokenizer: Any, limit: int) -> None:
    head, tail = "the river of the old town is blue", " // who ? /"
    (ids,) = ContextTokenizer(generator_tokenizer).ids([(head, tail)], limit, closes=False)
    kept = " ".join([*head.split()[: limit - 5], *tail.split()])
    assert ids == generator_tokenizer(kept)["input_ids"][:-1]
    assert len(ids) == min(limit, 13)
