"""Evaluation sets, gold answers and gold titles."""

from __future__ import annotations

from pathlib import Path

import pytest

from ragstone.data.gold import read_gold_answers, read_gold_titles, read_questions
from ragstone.errors import InputError


def written(path: Path, text: str) -> Path:
    path.write_text(text, encoding="utf-8")
    return path


def test_questions(tmp_path: Path) -> None:
    assert read_questions(written(tmp_path / "q", " who? \nwhere?\n")) == ["who?", "where?"]


def test_lists_of_answers(tmp_path: Path) -> None:
    path = written(tmp_path / "gold", "who?\t['anna', \"o'tto\"]\nwhere?\t['here']\n")
    assert read_gold_answers(path, "qa", ["who?", "where?"]) == [("anna", "o'tto"), ("here",)]


def test_fields_that_pandas_quoted(tmp_path: Path) -> None:
    path = written(tmp_path / "gold", '"who said ""no""?"\t"[""a \\"" b"", \'c\']"\n')
    assert read_gold_answers(path, "qa", ['who said "no"?']) == [('a " b', "c")]


def test_spaces_in_the_question_do_not_matter(tmp_path: Path) -> None:
    path = written(tmp_path / "gold", "who  was it ?\t['anna']\n")
    assert read_gold_answers(path, "qa", ["who was it ?"]) == [("anna",)]


def test_one_answer_on_a_line(tmp_path: Path) -> None:
    path = written(tmp_path / "gold", " anna \n['not a list here']\n")
    assert read_gold_answers(path, "ans", ["who?", "what?"]) == [("anna",), ("['not a list here']",)]


@pytest.mark.parametrize(
    "answers",
    ["anna", "['anna'", "('anna',)", "['anna', 1]", "{'anna'}", "__import__('os').getcwd()", "[" * 5000],
)
def test_a_malformed_list_names_its_line(tmp_path: Path, answers: str) -> None:
    path = written(tmp_path / "gold", f"who?\t['anna']\nwhere?\t{answers}\n")
    with pytest.raises(InputError, match=r"gold, line 2: .* is not a list of strings"):
        read_gold_answers(path, "qa", ["who?", "where?"])


def test_answers_are_never_evaluated(tmp_path: Path) -> None:
    target = tmp_path / "made"
    path = written(tmp_path / "gold", f"who?\t[open({str(target)!r}, 'w').name]\n")
    with pytest.raises(InputError, match="line 1"):
        read_gold_answers(path, "qa", ["who?"])
    assert not target.exists()


def test_an_empty_list(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="line 1: the list of answers is empty"):
        read_gold_answers(written(tmp_path / "gold", "who?\t[]\n"), "qa", ["who?"])


@pytest.mark.parametrize("line", ["who?", "who?\t['a']\t['b']"])
def test_number_of_columns(tmp_path: Path, line: str) -> None:
    with pytest.raises(InputError, match=r"line 1: [13] column\(s\) instead of 2"):
        read_gold_answers(written(tmp_path / "gold", f"{line}\n"), "qa", ["who?"])


def test_another_question(tmp_path: Path) -> None:
    path = written(tmp_path / "gold", "who?\t['a']\nwhen?\t['b']\n")
    with pytest.raises(InputError, match=r"line 2: the question 'when\?' differs from the evaluation set's 'where\?'"):
        read_gold_answers(path, "qa", ["who?", "where?"])


@pytest.mark.parametrize("mode", ["qa", "ans"])
def test_another_number_of_answers(tmp_path: Path, mode: str) -> None:
    path = written(tmp_path / "gold", "who?\t['a']\n")
    with pytest.raises(InputError, match="has 1 lines, but the evaluation set has 2"):
        read_gold_answers(path, mode, ["who?", "where?"])


def test_titles(tmp_path: Path) -> None:
    path = written(tmp_path / "gold", "Old Town\tRiver\nHill\t\n")
    assert read_gold_titles(path, ["who?", "where?"]) == [("Old Town", "River"), ("Hill",)]
    spaced = written(tmp_path / "spaced", "Old\u00a0 Town \t \t River\n")
    assert read_gold_titles(spaced, ["who?"]) == [("Old Town", "River")]
    with pytest.raises(InputError, match="has 2 lines, but the evaluation set has 3"):
        read_gold_titles(path, ["who?", "where?", "when?"])
