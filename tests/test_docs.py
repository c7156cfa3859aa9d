"""The documentation as a whole: every page is listed, every link leads somewhere, every test that is named exists."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

DOCS = Path(__file__).parents[1] / "docs"
PAGES = sorted(DOCS.glob("*.md"))
ROWS = [
    [cell.strip() for cell in re.split(r"(?<!\\)\|", line.strip("|"))]
    for line in (DOCS / "reference-failures.md").read_text(encoding="utf-8").splitlines()
    if line.startswith("| ") and not line.startswith("| in the reference |")
]


def links(page: Path) -> list[str]:
    found = re.findall(r"\]\(([^)#]+)[^)]*\)", page.read_text(encoding="utf-8"))
    return [link for link in found if "://" not in link]


def test_the_index_lists_every_page_once() -> None:
    assert sorted(links(DOCS / "index.md")) == [page.name for page in PAGES if page.name != "index.md"]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page: Path) -> None:
    assert [link for link in links(page) if not (page.parent / link).exists()] == []


@pytest.mark.parametrize(("failure", "repair", "test"), ROWS)
def test_the_test_that_shows_a_repair_exists(failure: str, repair: str, test: str) -> None:
    assert failure and repair
    path, _, name = test.strip("`").partition("::")
    module = ast.parse((DOCS.parent / path).read_text(encoding="utf-8"))
    assert name in [node.name for node in module.body if isinstance(node, ast.FunctionDef)]


def test_the_table_of_failures_is_read() -> None:
    assert len(ROWS) > 25
