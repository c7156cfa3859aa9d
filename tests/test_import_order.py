"""Imports flow one way: a part of Ragstone knows those before it in this list, never those behind it."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

import ragstone

PACKAGE = Path(ragstone.__file__).parent
ORDER = (
    ("arithmetic", "errors", "types"),
    ("allocation", "denormals", "flags", "interrupt", "memory", "output", "progress"),
    ("prompt_template", "replacement", "weights"),
    ("importing",),
    ("settings",),
    ("processes",),
    ("encoders",),
    ("index",),
    ("data",),
    ("knowledge",),
    ("retrieval",),
    ("model",),
    ("evaluation",),
    ("training",),
    ("serving",),
    ("demo",),
    ("commands",),
    ("__main__",),
)
RANK = {part: rank for rank, parts in enumerate(ORDER) for part in parts}
MODULES = sorted(PACKAGE.rglob("*.py"))


def part_of(path: Path) -> str:
    """The package right below ragstone, or the module there, that `path` belongs to."""
    first = path.relative_to(PACKAGE).parts[0]
    return first.removesuffix(".py")


def imports(path: Path) -> Iterator[tuple[int, str]]:
    """Line and name of everything that the file imports from ragstone, wherever it stands in the file."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}, line {node.lineno}: a relative import"
            if node.module == "ragstone":
                yield from ((node.lineno, alias.name) for alias in node.names if alias.name != "__version__")
            elif node.module and node.module.startswith("ragstone."):
                yield node.lineno, node.module.removeprefix("ragstone.")
        elif isinstance(node, ast.Import):
            yield from (
                (node.lineno, alias.name.removeprefix("ragstone."))
                for alias in node.names
                if alias.name.startswith("ragstone.")
            )


def test_every_part_has_a_place_in_the_order() -> None:
    assert {part_of(path) for path in MODULES} - {"__init__"} <= set(RANK)


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_imports_never_point_down(path: Path) -> None:
    part = part_of(path)
    if part == "__init__":
        assert not list(imports(path))
        return
    down = [
        f"line {line}: ragstone.{name}"
        for line, name in imports(path)
        if name.partition(".")[0] != part and RANK[name.partition(".")[0]] >= RANK[part]
    ]
    assert not down


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("from ragstone.model.rag import RagModel", ["model.rag"]),
        ("def f():\n    import ragstone.index.exact", ["index.exact"]),
        ("from ragstone import __version__, data", ["data"]),
        ("import torch, ragstoneother", []),
    ],
)
def test_imports_are_seen_wherever_they_stand(tmp_path: Path, source: str, expected: list[str]) -> None:
    path = tmp_path / "module.py"
    path.write_text(source, encoding="utf-8")
    assert [name for _, name in imports(path)] == expected
