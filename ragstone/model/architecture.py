"""Which implementation reads and writes with a generator: the one spot where its architecture is asked for."""

from __future__ import annotations

from typing import Any, NamedTuple

from ragstone.errors import InputError
from ragstone.model.causal import CausalGenerator
from ragstone.model.generator import Generator
from ragstone.model.prompt import PromptSettings, make_wrapping
from ragstone.model.seq2seq import Seq2SeqGenerator

WRITING_HEADS = ("ForCausalLM", "LMHeadModel")
"""How transformers names, and named, most classes of decoder-only models that write."""


def is_generator(config: Any) -> bool:
    """Whether a transformers config is that of a model that one of the Auto classes for writing text opens.

    A decoder-only model must also have been saved with its head: BERT is among AutoModelForCausalLM's models too.
    """
    from transformers import MODEL_FOR_CAUSAL_LM_MAPPING, MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING

    kind = type(config)
    if config.is_encoder_decoder:
        return kind in MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING
    if kind not in MODEL_FOR_CAUSAL_LM_MAPPING:
        return False
    head: Any = MODEL_FOR_CAUSAL_LM_MAPPING[kind]
    return any(name == head.__name__ or name.endswith(WRITING_HEADS) for name in config.architectures or [])


def auto_class(config: Any, name: str) -> Any:
    """The Auto class of transformers that opens a generator.

    Raises:
        InputError: the model is no generator; names it and what to take instead.
    """
    from transformers import AutoModelForCausalLM, AutoModelForSeq2SeqLM

    if is_generator(config):
        return AutoModelForSeq2SeqLM if config.is_encoder_decoder else AutoModelForCausalLM
    raise InputError(
        f"{name} is a {config.model_type} model, which generates no text; take a generator, such as BART, T5 or Llama."
    )


def as_generator(model: Any, tokenizer: Any, prompt: PromptSettings | None) -> Generator[Any]:
    """A transformers model as a generator; `prompt` is for decoder-only ones.

    Raises:
        InputError: the model cannot be used as one.
    """
    if model.config.is_encoder_decoder:
        return Seq2SeqGenerator(model, tokenizer)
    return CausalGenerator(model, tokenizer, make_wrapping(tokenizer, prompt or PromptSettings()))


class AddedTokens(NamedTuple):
    """How many tokens are put before and behind a text."""

    context: int
    target: int


def added_tokens(generator: Generator[Any]) -> AddedTokens:
    """Those of what a generator reads, and of the targets that it learns from."""
    opening, closing = generator.context_tokenizer.added_tokens()
    if generator.model.config.is_encoder_decoder:
        return AddedTokens(opening + closing, len(generator.tokenizer(text_target="")["input_ids"]))
    # A prompt is left open for the answer, which has an end token.
    return AddedTokens(opening, 1)


def choose_prompt(
    config: Any, tokenizer: Any, recorded: dict[str, Any] | None, template: str | None, chat: bool | None
) -> PromptSettings | None:
    """The prompt of a generator: what is asked for, else what is recorded, else what suits its tokenizer.

    Args:
        config: the generator's.
        tokenizer: the generator's.
        recorded: a PromptSettings as a dictionary, from a checkpoint.
        template: asked for; the chat template is left out then, unless `chat` asks for it.
        chat: asked for.

    Returns:
        None for a generator that takes no prompt.

    Raises:
        InputError: a prompt is asked for, but the generator takes none; or one that is no template.
    """
    if config.is_encoder_decoder:
        if template is not None or chat is not None:
            raise InputError(
                f"--prompt_template and --chat are for decoder-only generators, and this is a {config.model_type}; "
                "leave them out."
            )
        return None
    before = PromptSettings(**recorded) if recorded else PromptSettings.suiting(bool(tokenizer.chat_template))
    if template is None and chat is None:
        return before
    wants_chat = chat if chat is not None else template is None and before.chat
    if template is None:
        template = before.template if before.chat == wants_chat else PromptSettings.suiting(wants_chat).template
    return PromptSettings(template, wants_chat)
