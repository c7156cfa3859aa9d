"""The text that the generator reads: a passage and the question.

prefix + title + " / " + text + " // " + question, as RagRetriever.postprocess_docs of transformers joins them, or a
prompt's template with these filled in.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from ragstone.prompt_template import fill
from ragstone.types import NO_PASSAGE, Passage


@dataclass(frozen=True)
class ContextFormat:
    """How passage and question are joined, and how long the result may be."""

    title_sep: str = " / "
    doc_sep: str = " // "
    prefix: str = ""
    max_length: int = 300
    """Tokens; a longer context loses the end of its passage, and only a question that is too long by itself its end."""
    template: str | None = None
    """A decoder-only generator's prompt (see prompt.PromptSettings), where {passage} is title, title_sep and text."""
    decoded_question: bool = False
    """Whether the question stands there as the question encoder's tokenizer gives it back, for most in lower case: what
    checkpoints that transformers wrote were trained on. Else it stands there as it was asked."""

    def text(self, passage: Passage, question: str) -> tuple[str, str]:
        """The context in two parts: what is cut first (prefix and passage), and the question.

        A missing passage leaves prefix and question, which then are one part.
        """
        if self.template is not None:
            return self._filled(self.template, passage, question)
        if passage == NO_PASSAGE:
            return "", self.prefix + question
        title = passage.title.removeprefix('"').removesuffix('"')
        tail = f"{self.doc_sep}{question}"
        joined = f"{self.prefix}{title}{self.title_sep}{passage.text}{tail}".replace("  ", " ")
        tail = tail.replace("  ", " ")
        return joined.removesuffix(tail), tail

    def _filled(self, template: str, passage: Passage, question: str) -> tuple[str, str]:
        if passage == NO_PASSAGE:
            return "", self.prefix + "".join(fill(template, "", "", "", question)).lstrip()
        whole = f"{passage.title}{self.title_sep}{passage.text}"
        head, tail = fill(template, passage.title, passage.text, whole, question)
        return self.prefix + head, tail

    def texts(self, passages: Sequence[Sequence[Passage]], questions: Sequence[str]) -> list[tuple[str, str]]:
        """The contexts of B questions with N passages each, B·N in order."""
        return [
            self.text(passage, question) for row, question in zip(passages, questions, strict=True) for passage in row
        ]
