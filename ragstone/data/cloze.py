"""Reading practice: questions made from passages by leaving a phrase out, which is the answer.

A generator without pretraining must learn to look for the place in a passage that a question is about, and to copy
from there, before it can learn from question-answer pairs. Clozes of the user's own passages teach that without
labels: the blank is filled with a question word, and other words are dropped, so that a cloze is halfway to a question
(Lewis et al. 2019, arXiv 1906.04980). Retrieving for a cloze practises retrieval too (REALM, arXiv 2002.08909).

A cloze begins with its passage's title, as a question says what it is about. Without it the nearest passage holds the
answer for a third of the clozes of real text, too few to learn reading from; with it, for nine of ten.
"""

from __future__ import annotations

import random
import string
from collections.abc import Sequence

from ragstone.types import Example, Passage

LONGEST_ANSWER = 4
"""Words."""
CONTEXT_WORDS = (4, 12)
"""Words of the passage on each side of the blank, from and to."""
KEPT = 0.8
"""Chance of a word beside the blank to stay."""
OTHER_PHRASES = 0.25
"""Part of the clozes whose answer is any phrase, not a name or number."""
FEWEST_WORDS = 12
FILLERS = frozenset(
    word
    for line in (
        "a an the in on at it he she they this that these those but and or for his her its their as from to of by",
        "with when while after before during if there one some many most what who",
    )
    for word in line.split()
)


def make_cloze(passage: Passage, chooser: random.Random) -> Example | None:
    """A cloze of `passage`, drawn with `chooser`; None where it is too short to ask about or its title tells."""
    words = passage.text.split()
    if len(words) < FEWEST_WORDS:
        return None
    phrases = name_phrases(words)
    if not phrases or chooser.random() < OTHER_PHRASES:
        start = chooser.randrange(len(words) - 3)
        phrases = [(start, start + chooser.randint(1, 3))]
    begin, end = chooser.choice(phrases)
    answer = " ".join(words[begin:end]).strip(string.punctuation + " ")
    if not answer or answer.lower() in passage.title.lower():
        return None
    before = words[max(0, begin - chooser.randint(*CONTEXT_WORDS)) : begin]
    behind = words[end : end + chooser.randint(*CONTEXT_WORDS)]
    kept = [[word for word in side if chooser.random() < KEPT] for side in (before, behind)]
    question = " ".join([*passage.title.split(), *kept[0], _question_word(answer, chooser), *kept[1]])
    return Example(question, answer)


def name_phrases(words: Sequence[str]) -> list[tuple[int, int]]:
    """Where names and numbers stand: runs of at most four words that begin with a capital or a digit, as [from, to)."""
    phrases = []
    begin = 0
    while begin < len(words):
        end = begin
        while end < len(words) and end - begin < LONGEST_ANSWER and _names(words[end]):
            end += 1
            if words[end - 1][-1] in ',.;:)"':
                break
        if end > begin:
            phrases.append((begin, end))
        begin = max(end, begin + 1)
    return phrases


def _names(word: str) -> bool:
    bare = word.strip(string.punctuation)
    return bool(bare) and (bare[0].isdigit() or (bare[0].isupper() and bare.lower() not in FILLERS))


def _question_word(answer: str, chooser: random.Random) -> str:
    first = answer.split()[0].replace(",", "")
    if first.isdigit():
        return "when" if len(first) == 4 else "how many"
    return chooser.choice(("who", "what", "which", "where")) if answer[0].isupper() else "what"
