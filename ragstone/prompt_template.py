"""Templates of prompts: a text with fields in braces."""

from __future__ import annotations

from string import Formatter

from ragstone.errors import InputError

PASSAGE_FIELDS = ("passage", "text")
FIELDS = (*PASSAGE_FIELDS, "title", "question")


def refuse_no_template(template: str) -> None:
    """Refuse a text in which question and passage do not find their place.

    Raises:
        InputError: it is no template, has unknown fields, or lacks the question or the passage.
    """
    try:
        fields = [name for _, name, _, _ in Formatter().parse(template) if name is not None]
    except ValueError as error:
        raise InputError(f"--prompt_template {template!r} is not a template ({error}); write {{{{ for {{.") from error
    unknown = [name for name in fields if name not in FIELDS]
    if unknown:
        raise InputError(
            f"--prompt_template has the field {{{unknown[0]}}}, but knows only "
            f"{', '.join(f'{{{name}}}' for name in FIELDS)}; write {{{{ for {{."
        )
    if fields.count("question") != 1 or not set(fields) & set(PASSAGE_FIELDS):
        raise InputError(f"--prompt_template {template!r} must have {{question}} once, and {{passage}} or {{text}}.")


def fill(template: str, title: str, text: str, passage: str, question: str) -> tuple[str, str]:
    """A template with its fields filled in, in two parts: up to the end of the passage, and the rest."""
    values = {"title": title, "text": text, "passage": passage, "question": question}
    pieces: list[str] = []
    end = 0
    for literal, name, _, _ in Formatter().parse(template):
        pieces.append(literal)
        if name is not None:
            pieces.append(values[name])
            if name in PASSAGE_FIELDS:
                end = len(pieces)
    return "".join(pieces[:end]), "".join(pieces[end:])
