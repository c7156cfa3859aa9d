"""Prompts of decoder-only generators: the template for passage and question, and what stands around it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from ragstone.errors import InputError
from ragstone.prompt_template import refuse_no_template

DEFAULT_TEMPLATE = "{passage}\n\nQuestion: {question}\nAnswer:"
CHAT_TEMPLATE = "{passage}\n\nAnswer from the text above, in a few words. Question: {question}"
"""The user's turn, where the model has a chat template."""
MARK = "\u2063RAGSTONE\u2063"
"""A text that no chat template changes."""


@dataclass(frozen=True)
class PromptSettings:
    """How passage and question become a prompt."""

    template: str = DEFAULT_TEMPLATE
    """Text with {question} and {passage} (title and text), or {title} and {text}."""
    chat: bool = False
    """Whether the model's chat template is put around it."""

    @classmethod
    def suiting(cls, chat: bool) -> PromptSettings:
        """What a model without (or with) a chat template gets where nobody says."""
        return cls(CHAT_TEMPLATE, chat=True) if chat else cls()

    def __post_init__(self) -> None:
        """Check the template.

        Raises:
            InputError: it is no template, or lacks the question or the passage.
        """
        refuse_no_template(self.template)


@dataclass(frozen=True)
class Wrapping:
    """Text around every filled template, and what separates the answer from it."""

    before: str = ""
    after: str = ""
    blank: str = " "
    """Stands before an answer, where a prompt must not end in a blank: tokenizers put it to the word behind it."""
    end: int | None = None
    """The token that ends an answer; the tokenizer's end of text where None."""
    opens: bool = True
    """Whether the tokenizer puts its start token before the prompt; a chat template does that itself."""

    def wrap(self, contexts: Sequence[tuple[str, str]]) -> list[tuple[str, str]]:
        """Contexts as prompts, in the same two parts."""
        return [(self.before + head, (tail + self.after).rstrip(" ")) for head, tail in contexts]


def make_wrapping(tokenizer: Any, settings: PromptSettings) -> Wrapping:
    """What a tokenizer's conventions ask for around prompts made as `settings` say.

    Raises:
        InputError: a chat template is asked for, but the tokenizer has none that can be used.
    """
    if settings.chat:
        return _chat_wrapping(tokenizer)
    # SentencePiece tokenizers put a blank before a text themselves.
    has_own = str(tokenizer.tokenize("a")[0]).startswith("\u2581")
    return Wrapping(blank="" if has_own or settings.template.endswith("\n") else " ")


def _chat_wrapping(tokenizer: Any) -> Wrapping:
    if not tokenizer.chat_template:
        raise InputError("The generator's tokenizer has no chat template; leave --chat out, or give --prompt_template.")

    def written(*turns: tuple[str, str], **options: bool) -> str:
        messages = [{"role": role, "content": text} for role, text in turns]
        # Models that can think aloud are told not to: the answer follows the prompt at once.
        return tokenizer.apply_chat_template(messages, tokenize=False, enable_thinking=False, **options)

    try:
        before, mark, after = written(("user", MARK), add_generation_prompt=True).partition(MARK)
        behind = written(("user", "?"), ("assistant", MARK)).rpartition(MARK)[2]
    except Exception as error:  # a template is a program of its own
        raise InputError(f"The generator's chat template cannot be used ({error}); give --no_chat.") from error
    if not mark:
        raise InputError("The generator's chat template leaves out what the user says; give --no_chat.")
    special = {*tokenizer.all_special_ids}
    special |= {number for number, token in tokenizer.added_tokens_decoder.items() if token.special}
    end = next((i for i in tokenizer(behind, add_special_tokens=False)["input_ids"] if i in special), None)
    header = after.rstrip(" ")
    return Wrapping(before, header, blank=after[len(header) :], end=end, opens=False)
