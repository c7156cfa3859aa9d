"""DPR's biencoder files: entries, training examples, and what is wrong with a file and where."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import pytest

from ragstone.data.dpr import Context, DprEntry, RetrieverExample, read_dpr, read_retriever_examples
from ragstone.errors import InputError

RIVER, HILL, TOWN = Context("River", "it is blue"), Context("Hill", "it is red"), Context("Town", "it is old")


def entry(question: str = "what is blue?", **contexts: list[Context]) -> dict[str, Any]:
    return {
        "question": question,
        "answers": ["river"],
        **{f"{kind}_ctxs": [context._asdict() for context in given] for kind, given in contexts.items()},
    }


def written(path: Path, entries: Any) -> Path:
    path.write_text(json.dumps(entries), encoding="utf-8")
    return path


@pytest.mark.parametrize("name", ["plain.json", "zipped.json.gz", "zipped-by-content.json"])
def test_entries_of_plain_and_gzipped_files(tmp_path: Path, name: str) -> None:
    entries = [entry(positive=[RIVER, TOWN], negative=[HILL], hard_negative=[TOWN]), entry("what else?")]
    content = json.dumps(entries).encode()
    path = tmp_path / name
    path.write_bytes(gzip.compress(content) if "zipped" in name else content)
    assert list(read_dpr(path)) == [
        DprEntry(1, "what is blue?", ("river",), (RIVER, TOWN), (HILL,), (TOWN,)),
        DprEntry(2, "what else?", ("river",), (), (), ()),
    ]


def test_unknown_keys_and_missing_titles(tmp_path: Path) -> None:
    context = {"title": None, "text": "it is blue", "score": 1.5, "passage_id": "7"}
    path = written(tmp_path / "d.json", [{"dataset": "x", "question": "q", "positive_ctxs": [context]}])
    assert list(read_dpr(path)) == [DprEntry(1, "q", (), (Context("", "it is blue"),), (), ())]


def test_an_empty_array_has_no_entries(tmp_path: Path) -> None:
    assert list(read_dpr(written(tmp_path / "d.json", []))) == []


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", r"does not begin with '\['"),
        (b'{"question": "q"}', r"does not begin with '\['"),
        (b'[\n{"question": "q"},\n{"question": "r"', r"line 3, byte 38: the file ends inside entry 2 .*cut off"),
        (b'[{"question": "q"}', r"line 1, byte 19: the file ends inside entry 2 or before the closing"),
        (b'[{"question": "q"}\n{"question": "r"}]', r"line 2, byte \d+, entry 2: broken JSON .* near"),
        (b'[{"question": "q"},\n{"question": "\xff"}]', r"line 2, byte 35: byte 0xff is not UTF-8"),
        (b'[{"question": "q"}, 7]', "entry 2 is not an object with question"),
        (b'[{"questions": "q"}]', r"entry 1 has no question \(found None\)"),
        (b'[{"question": " "}]', r"entry 1 has no question \(found ' '\)"),
        (b'[{"question": "q", "answers": "a"}]', "entry 1: answers must be a list, found 'a'"),
        (b'[{"question": "q", "positive_ctxs": {}}, 7]', "entry 2"),
        (b'[{"question": "q", "positive_ctxs": "p"}]', "entry 1: positive_ctxs must be a list of contexts, found 'p'"),
        (
            b'[{"question": "q", "hard_negative_ctxs": ["p"]}]',
            "hard_negative_ctxs must hold objects with title and text",
        ),
        (b'[{"question": "q", "positive_ctxs": [{"title": 7}]}]', r"a title or text that is not a string \(7\)"),
        (gzip.compress(b'[{"question": "q"}]' * 50, mtime=0)[:-9], "is a damaged or cut off gzip file"),
        (b"\x1f\x8bnonsense", "is a damaged or cut off gzip file"),
    ],
)
def test_what_is_wrong_is_said_in_one_sentence(tmp_path: Path, content: bytes, message: str) -> None:
    path = tmp_path / "d.json"
    path.write_bytes(content)
    with pytest.raises(InputError, match=message) as caught:
        list(read_dpr(path))
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["missing.json", "."])
def test_unreadable_path(tmp_path: Path, name: str) -> None:
    with pytest.raises(InputError, match=r"cannot be read: (No such file|Is a directory)"):
        list(read_dpr(tmp_path / name))


def test_example_takes_first_positive_and_first_hard_negatives(tmp_path: Path) -> None:
    path = written(tmp_path / "d.json", [entry("what\nis  blue?", positive=[RIVER, TOWN], hard_negative=[TOWN, HILL])])
    keys = frozenset({hash(RIVER), hash(TOWN)})
    assert list(read_retriever_examples([path], 1)) == [RetrieverExample("what is blue?", RIVER, keys, (HILL,))]
    assert next(read_retriever_examples([path], 0)).hard_negatives == ()


def test_ordinary_negatives_stand_in_for_hard_ones(tmp_path: Path) -> None:
    path = written(tmp_path / "d.json", [entry(positive=[RIVER], negative=[HILL, TOWN])])
    assert next(read_retriever_examples([path], 5)).hard_negatives == (HILL, TOWN)


def test_examples_of_several_files_in_order(tmp_path: Path) -> None:
    paths = [written(tmp_path / name, [entry(name, positive=[RIVER])]) for name in ("b", "a")]
    assert [example.question for example in read_retriever_examples(paths, 1)] == ["b", "a"]


def test_an_example_needs_a_positive_with_text(tmp_path: Path) -> None:
    path = written(tmp_path / "d.json", [entry(positive=[RIVER]), entry("why?", hard_negative=[HILL])])
    with pytest.raises(InputError, match=r"d\.json, entry 2 \('why\?'\) has no positive context"):
        list(read_retriever_examples([path], 1))
    path = written(tmp_path / "d.json", [entry(positive=[Context("River", " ")])])
    with pytest.raises(InputError, match=r"d\.json, entry 1 has a context without text \('River'\)"):
        list(read_retriever_examples([path], 1))
