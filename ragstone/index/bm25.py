"""BM25 over passages: built from a stream of texts by bm25s, saved, opened memory-mapped, searched by words.

The weight of a word in a passage (Robertson & Zaragoza 2009; Lucene's variant, Kamphuis et al. 2020) is

    log(1 + (n - df + 1/2) / (df + 1/2)) · tf / (tf + K1 · (1 - B + B · length / mean length))

with n passages, df of which have the word, tf times in this one; a passage's score is the sum over the question.

Shapes: B questions, N results, n passages, W words of the vocabulary, P pairs of a word and a passage that has it.
"""

from __future__ import annotations

from array import array
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ragstone.errors import InputError
from ragstone.index.searcher import nothing_found
from ragstone.index.words import split_words
from ragstone.types import FloatArray, IntArray

K1, B = 0.9, 0.4
"""As for the passages of 100 words in the replication of DPR (Ma et al. 2021, arXiv 2104.05740)."""
REMEDY = "build the knowledge source again"


def build_bm25(texts: Iterable[str], folder: Path) -> None:
    """Index `texts`, whose numbers from 0 are their ids, and write the index into `folder`, which is not there yet.

    Held in memory until it is done: 4 bytes for each word of the texts, then about 40 for each pair.
    """
    import bm25s

    vocabulary: dict[str, int] = {}
    numbers = [
        array("i", [vocabulary.setdefault(word, len(vocabulary)) for word in split_words(text)]) for text in texts
    ]
    if not vocabulary:
        raise InputError("No passage has a word of letters or digits, so BM25 finds nothing; give other documents.")
    inner = bm25s.BM25(k1=K1, b=B, method="lucene")
    inner.index((numbers, vocabulary), create_empty_token=False, show_progress=False)
    inner.save(folder, show_progress=False)


class Bm25Index:
    """An opened index. The weights stay in the map; the vocabulary is in memory."""

    def __init__(self, inner: Any, path: Path) -> None:
        self._inner = inner
        self.path = path

    @classmethod
    def open(cls, folder: Path) -> Bm25Index:
        """Open the index in `folder`.

        Raises:
            InputError: missing or damaged.
        """
        import bm25s

        if not folder.is_dir():
            raise InputError(f"There is no BM25 index {folder}; build the knowledge source with --bm25.")
        try:
            inner = bm25s.BM25.load(folder, mmap=True)
            pointers = inner.scores["indptr"]
            ends = int(pointers[-1])
            whole = len(pointers) == len(inner.vocab_dict) + 1 and isinstance(inner.scores["num_docs"], int)
            whole = whole and ends == len(inner.scores["data"]) == len(inner.scores["indices"])
        except (OSError, ValueError, KeyError, TypeError, EOFError, IndexError) as error:
            raise InputError(f"The BM25 index {folder} cannot be read ({error}); {REMEDY}.") from error
        if not whole:
            raise InputError(f"The files of the BM25 index {folder} do not belong together; {REMEDY}.")
        return cls(inner, folder)

    def __len__(self) -> int:
        """How many passages it holds."""
        return int(self._inner.scores["num_docs"])

    @property
    def vocabulary(self) -> int:
        """W: how many words it knows."""
        return len(self._inner.vocab_dict)

    def scores(self, question: str) -> FloatArray:
        """The score [n] of every passage; 0 where it has no word of the question, which may have no word at all.

        A word that stands twice in the question counts twice.
        """
        ids = self._inner.get_tokens_ids(split_words(question))
        return np.asarray(self._inner.get_scores_from_ids(ids), dtype=np.float32)

    def search(self, questions: Sequence[str], n: int) -> tuple[FloatArray, IntArray]:
        """Scores [B, N] and ids [B, N] of the best passages for each question; -inf and -1 where there are fewer.

        A passage that has no word of the question is not found.
        """
        scores, ids = nothing_found(len(questions), n)
        for row, question in enumerate(questions):
            all_scores = self.scores(question)
            best = best_rows(all_scores, n)
            ids[row, : len(best)] = best
            scores[row, : len(best)] = all_scores[best]
        return scores, ids

    def rows_with(self, word: str) -> IntArray:
        """The passages that have `word`, in order."""
        number = self._inner.vocab_dict.get(word)
        if number is None:
            return np.empty(0, dtype=np.int64)
        start, end = self._inner.scores["indptr"][number : number + 2]
        return np.asarray(self._inner.scores["indices"][start:end], dtype=np.int64)

    def check(self) -> None:
        """Read all weights.

        Raises:
            InputError: a weight that is no number above 0, or of a passage that there is not.
        """
        pointers, rows, weights = (self._inner.scores[name] for name in ("indptr", "indices", "data"))
        sound = pointers[0] == 0 and (np.diff(pointers) >= 0).all() and (rows >= 0).all() and (rows < len(self)).all()
        if not (sound and np.isfinite(weights).all() and (weights > 0).all()):
            raise InputError(f"The BM25 index {self.path} is damaged; {REMEDY}.")


def best_rows(scores: FloatArray, n: int) -> IntArray:
    """The rows of the at most `n` highest scores above 0 in `scores` [n passages], best first, equal ones by row."""
    rows = np.flatnonzero(scores > 0)
    if len(rows) > n:
        # A cut first: sorting every passage that has a common word would cost more than to score it.
        found = scores[rows]
        rows = rows[found >= np.partition(found, -n)[-n]]
    return rows[np.lexsort((rows, -scores[rows]))[:n]]
