"""Folders of .source and .target files."""

from __future__ import annotations

from pathlib import Path

import pytest

from ragstone.data.examples import read_examples, texts_of
from ragstone.errors import InputError
from ragstone.types import Example


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "val.source").write_text("who?\nwhere?\nwhen?\n", encoding="utf-8")
    (tmp_path / "val.target").write_text("anna\nhere\nnow\n", encoding="utf-8")
    return tmp_path


def test_lines_of_both_files_belong_together(folder: Path) -> None:
    examples = read_examples(folder, "val")
    assert examples == [Example("who?", "anna"), Example("where?", "here"), Example("when?", "now")]
    assert texts_of(examples) == (["who?", "where?", "when?"], ["anna", "here", "now"])


@pytest.mark.parametrize(("limit", "expected"), [(-1, 3), (0, 0), (2, 2), (9, 3)])
def test_limit(folder: Path, limit: int, expected: int) -> None:
    assert len(read_examples(folder, "val", limit)) == expected


def test_different_lengths_are_refused_even_beyond_the_limit(folder: Path) -> None:
    with (folder / "val.target").open("a", encoding="utf-8") as file:
        file.write("one more\n")
    with pytest.raises(InputError, match=r"val\.source has 3 lines, but .*val\.target has 4"):
        read_examples(folder, "val", 1)


def test_missing_split(folder: Path) -> None:
    with pytest.raises(InputError, match=r"test\.source cannot be read"):
        read_examples(folder, "test")
