"""Documents to passages of equal length."""

from __future__ import annotations

from collections.abc import Iterator

from ragstone.knowledge.documents import Document
from ragstone.types import Passage


def split_document(document: Document, max_words: int) -> Iterator[Passage]:
    """The document's passages of at most `max_words` words, numbered within it.

    Words are what stands between spaces, as in split_text of the reference's use_own_knowledge_dataset.py, so that
    both cut the same text at the same places. A document without text gives none.
    """
    words = document.text.split(" ")
    number = 0
    for start in range(0, len(words), max_words):
        text = " ".join(words[start : start + max_words]).strip()
        if text:
            yield Passage(id=number, title=document.title, text=text)
            number += 1
