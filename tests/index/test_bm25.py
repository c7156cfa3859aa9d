"""BM25 against its formula, written out."""

from __future__ import annotations

import json
import math
import shutil
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from ragstone.errors import InputError
from ragstone.index.bm25 import K1, B, Bm25Index, best_rows, build_bm25
from tests.conftest import DOCUMENTS

TEXTS = [*(f"{title} {text}" for title, text in DOCUMENTS), "", "river river river hill"]
QUESTIONS = [
    "who founded the town ?",
    "the river",
    "river river hill",
    "King of the hill?",
    "zebra",
    "",
    "?",
    "zebra, and ANNA",
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("bm25") / "index"
    build_bm25(iter(TEXTS), folder)
    return folder


def formula(question: str, k1: float, b: float) -> list[float]:
    """The score of each text: Lucene's BM25, word by word."""
    passages = [text.lower().split() for text in TEXTS]
    mean_length = sum(map(len, passages)) / len(passages)
    scores = []
    for passage in passages:
        counts, score = Counter(passage), 0.0
        for word in question.lower().replace("?", "").split():
            having = sum(word in other for other in passages)
            idf = math.log(1 + (len(passages) - having + 0.5) / (having + 0.5))
            tf = counts[word]
            score += idf * tf / (tf + k1 * (1 - b + b * len(passage) / mean_length))
        scores.append(score)
    return scores


def test_scores_are_those_of_the_formula(folder: Path) -> None:
    index = Bm25Index.open(folder)
    assert (len(index), index.vocabulary) == (len(TEXTS), len(set(" ".join(TEXTS).split())))
    for question in QUESTIONS:
        np.testing.assert_allclose(index.scores(question), formula(question, K1, B), rtol=1e-5)
        assert index.scores(question).dtype == np.float32
    assert max(formula("the river", 1.5, 0.75)) != pytest.approx(max(formula("the river", K1, B)), rel=1e-2)


@pytest.mark.parametrize("n", [1, 3, 20])
def test_best_passages_first_and_nothing_without_a_word_in_common(folder: Path, n: int) -> None:
    scores, ids = Bm25Index.open(folder).search(QUESTIONS, n)
    assert (scores.shape, ids.shape, ids.dtype) == ((len(QUESTIONS), n), (len(QUESTIONS), n), np.int64)
    for row, question in enumerate(QUESTIONS):
        expected = formula(question, K1, B)
        order = sorted((i for i in range(len(TEXTS)) if expected[i] > 0), key=lambda i: (-round(expected[i], 5), i))[:n]
        assert ids[row].tolist() == order + [-1] * (n - len(order))
        np.testing.assert_allclose(scores[row, : len(order)], [expected[i] for i in order], rtol=1e-5)
        assert (scores[row, len(order) :] == -np.inf).all()
    assert (ids[QUESTIONS.index("zebra")] == -1).all() and (ids[QUESTIONS.index("")] == -1).all()


def test_no_questions(folder: Path) -> None:
    scores, ids = Bm25Index.open(folder).search([], 3)
    assert scores.shape == ids.shape == (0, 3)


def test_equal_scores_come_by_row() -> None:
    scores = np.array([1, 0, 2, 1, 1, 2, 0.5], dtype=np.float32)
    assert best_rows(scores, 4).tolist() == [2, 5, 0, 3]
    assert best_rows(scores, 9).tolist() == [2, 5, 0, 3, 4, 6]
    assert best_rows(np.zeros(4, dtype=np.float32), 2).tolist() == []


def test_weights_stay_in_the_map(folder: Path) -> None:
    inner = Bm25Index.open(folder)._inner
    assert all(isinstance(inner.scores[name], np.memmap) for name in ("data", "indices", "indptr"))


def test_texts_without_words(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="No passage has a word of letters or digits"):
        build_bm25(iter(["?!", ""]), tmp_path / "index")
    assert not (tmp_path / "index").exists()


def _other_weights(change: Callable[[np.ndarray], np.ndarray], name: str) -> Callable[[Path], None]:
    def spoil(folder: Path) -> None:
        path = folder / f"{name}.csc.index.npy"
        np.save(path, change(np.load(path)))

    return spoil


@pytest.mark.parametrize(
    ("spoil", "part"),
    [
        (lambda folder: (folder / "params.index.json").unlink(), "cannot be read"),
        (lambda folder: (folder / "vocab.index.json").write_text("{"), "cannot be read"),
        (lambda folder: (folder / "data.csc.index.npy").write_bytes(b"x"), "cannot be read"),
        (
            lambda folder: (folder / "params.index.json").write_text(json.dumps({"num_docs": 3, "nothing": 1})),
            "cannot be",
        ),
        (lambda folder: (folder / "vocab.index.json").write_text('{"a": 0}'), "do not belong together"),
        (_other_weights(lambda weights: weights[:-1], "data"), "do not belong together"),
        (_other_weights(lambda weights: -weights, "data"), "is damaged"),
        (_other_weights(lambda weights: weights * np.nan, "data"), "is damaged"),
        (_other_weights(lambda rows: rows + 1, "indices"), "is damaged"),
    ],
)
def test_damage_is_named(folder: Path, tmp_path: Path, spoil: Callable[[Path], None], part: str) -> None:
    copy = Path(shutil.copytree(folder, tmp_path / "index"))
    Bm25Index.open(copy).check()
    spoil(copy)
    with pytest.raises(InputError, match=part) as caught:
        Bm25Index.open(copy).check()
    assert str(copy) in str(caught.value)


def test_an_index_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"no BM25 index .*nowhere; build the knowledge source with --bm25"):
        Bm25Index.open(tmp_path / "nowhere")
