"""docs/models.md: every family has its cells, every test that is named exists and runs for that family."""

from __future__ import annotations

import ast
import re
import shlex
from collections.abc import Callable
from pathlib import Path

import pytest

from ragstone.__main__ import main
from ragstone.model.checkpoint import load_checkpoint
from tests.model.families import FAMILIES
from tests.model.test_causal import FAMILIES as DECODER_ONLY

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "models.md").read_text(encoding="utf-8")
TABLE = PAGE[PAGE.index("| family |") :]
ROWS = [[cell.strip() for cell in line.strip("|").split("|")] for line in re.findall(r"^\|.*\|$", TABLE, re.MULTILINE)]
NAMED = re.compile(r"`(tests/\S+\.py)::(\w+)`")


def functions(path: str) -> list[str]:
    module = ast.parse((ROOT / path).read_text(encoding="utf-8"))
    return [node.name for node in module.body if isinstance(node, ast.FunctionDef)]


def test_every_family_has_a_row_and_every_cell_a_test() -> None:
    heads, _, *rows = ROWS
    assert heads == [
        "family",
        *(f"RAG-{kind}, {what}" for kind in ("Sequence", "Token") for what in ("training", "decoding")),
    ]
    assert {*FAMILIES, *DECODER_ONLY} == {row[0] for row in rows}
    assert len({row[0] for row in rows}) == len(rows)
    for row in rows:
        assert len(row) == 5 and all(NAMED.search(cell) for cell in row[1:]), row


@pytest.mark.parametrize(("path", "name"), sorted(set(NAMED.findall(PAGE))))
def test_tests_that_are_named_exist(path: str, name: str) -> None:
    assert name.startswith("test_") and name in functions(path)


def test_the_tests_of_decoder_only_generators_run_for_every_family() -> None:
    source = (ROOT / "tests" / "model" / "test_causal.py").read_text(encoding="utf-8")
    assert '@pytest.fixture(scope="module", params=FAMILIES)\ndef generator(' in source
    named = {name for path, name in NAMED.findall(PAGE) if path == "tests/model/test_causal.py"}
    assert named == {
        node.name
        for node in ast.parse(source).body
        if isinstance(node, ast.FunctionDef) and node.name in named and node.args.args[0].arg == "generator"
    }


def test_the_tests_run_for_every_family() -> None:
    """The tests of one file take their families from one table, which the rows are held against."""
    source = (ROOT / "tests" / "model" / "test_families.py").read_text(encoding="utf-8")
    assert '@pytest.fixture(scope="module", params=FAMILIES)\ndef world(' in source
    module = ast.parse(source)
    tests = [node for node in module.body if isinstance(node, ast.FunctionDef) and node.name.startswith("test_")]
    assert all("world" in [argument.arg for argument in test.args.args] for test in tests)


def test_the_commands(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    models_folder: Path,
    llama_folder: Path,
    family_folder: Callable[[str], Path],
) -> None:
    """Tiny models stand where the hub's names point to."""
    (tmp_path / "facebook").mkdir()
    (tmp_path / "facebook" / "mbart-large-50").symlink_to(family_folder("mBART-50"))
    (tmp_path / "question_encoder").symlink_to(models_folder / "question_encoder")
    monkeypatch.chdir(tmp_path)
    (tmp_path / "Qwen").mkdir()
    (tmp_path / "Qwen" / "Qwen3-0.6B").symlink_to(llama_folder)
    languages, decoder_only = re.findall(r"^ +ragstone (consolidate .*)$", PAGE, re.MULTILINE)
    assert main(shlex.split(languages)) == 0
    assert load_checkpoint("rag").generator.tokenizer.tgt_lang == "ro_RO"
    assert main([*shlex.split(decoder_only), "--dest", "other"]) == 0
    assert load_checkpoint("other").context.template is not None
