from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from ragstone.knowledge.documents import Document
from ragstone.knowledge.passages import split_document


def texts(text: str, max_words: int = 100) -> list[str]:
    return [passage.text for passage in split_document(Document("title", text), max_words)]


def reference(text: str, n: int) -> list[str]:
    """What split_text of use_own_knowledge_dataset.py is defined to give: n words at a time, split at single spaces."""
    words, parts = text.split(" "), []
    while words:
        parts.append(" ".join(words[:n]).strip())
        words = words[n:]
    return parts


def test_passages_of_100_words_by_hand() -> None:
    words = [f"w{i}" for i in range(250)]
    assert texts(" ".join(words)) == [" ".join(words[:100]), " ".join(words[100:200]), " ".join(words[200:])]
    assert texts(" ".join(words[:100])) == [" ".join(words[:100])]


def test_ids_count_on_and_titles_stay() -> None:
    passages = list(split_document(Document("River", "a b c d e"), 2))
    assert [(passage.id, passage.title, passage.text) for passage in passages] == [
        (0, "River", "a b"),
        (1, "River", "c d"),
        (2, "River", "e"),
    ]


def test_lines_and_double_spaces_are_cut_as_the_reference_cuts_them() -> None:
    assert texts("a\nb  c d", 2) == ["a\nb", "c d"]


def test_nothing_gives_no_passage() -> None:
    assert texts("") == texts("   ", 2) == []


@given(st.text(alphabet="ab \n", max_size=60), st.integers(1, 5))
def test_as_the_reference_but_for_empty_passages(text: str, n: int) -> None:
    assert texts(text, n) == [part for part in reference(text, n) if part]
