"""Nothing unpickles but ragstone/knowledge/legacy_pickles.py, whose process makes plain data only."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

import ragstone

PACKAGE = Path(ragstone.__file__).parent
THE_ONE_PLACE = PACKAGE / "knowledge" / "legacy_pickles.py"
PICKLERS = {"pickle", "_pickle", "cPickle", "cloudpickle", "dill", "joblib", "shelve", "marshal"}
HARMLESS = {"UnpicklingError", "PicklingError", "PickleError"}
"""Names of those modules that read nothing."""
NEEDS = {"torch": ("weights_only", True), "np": ("allow_pickle", False), "numpy": ("allow_pickle", False)}
"""What load of these libraries must be told."""
MAKES_OBJECTS = {"read_pickle", "unsafe_load", "full_load", "unsafe_load_all", "full_load_all"}


def unpickling(source: str) -> Iterator[str]:
    """Lines of a module that may make any object of what a file holds."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.ImportFrom):
            names = {name.name for name in node.names}
            module = (node.module or "").partition(".")[0]
            bad = names - HARMLESS if module in PICKLERS else names & {"load"} if module in NEEDS else set()
        elif isinstance(node, ast.Import):
            bad = {
                name.name
                for name in node.names
                if name.name in PICKLERS - {"pickle"} or (name.asname and name.name in PICKLERS)
            }
        elif isinstance(node, ast.Attribute):
            owner = node.value.id if isinstance(node.value, ast.Name) else ""
            bad = {node.attr} & MAKES_OBJECTS | ({node.attr} - HARMLESS if owner in PICKLERS else set())
        elif isinstance(node, ast.Call):
            bad = set(_bad_call(node))
        else:
            continue
        if bad:
            yield ast.unparse(node)


def _bad_call(call: ast.Call) -> Iterator[str]:
    given = {word.arg: getattr(word.value, "value", None) for word in call.keywords if word.arg}
    for name, value in NEEDS.values():
        if name in given and given[name] is not value:
            yield name
    function = call.func
    if isinstance(function, ast.Attribute) and function.attr == "load" and isinstance(function.value, ast.Name):
        name, value = NEEDS.get(function.value.id, ("", None))
        if name and given.get(name) is not value:
            yield name


@pytest.mark.parametrize("path", sorted(PACKAGE.rglob("*.py")), ids=lambda path: str(path.relative_to(PACKAGE)))
def test_a_module_unpickles_nothing(path: Path) -> None:
    found = list(unpickling(path.read_text(encoding="utf-8")))
    assert bool(found) == (path == THE_ONE_PLACE), found


@pytest.mark.parametrize(
    "source",
    [
        "import pickle\npickle.load(file)",
        "import pickle\nclass Mine(pickle.Unpickler): ...",
        "from pickle import loads",
        "import pickle as p",
        "import dill",
        "torch.load(path)",
        "torch.load(path, weights_only=False)",
        "torch.load(path, weights_only=asked)",
        "from torch import load",
        "np.load(path)",
        "np.load(path, allow_pickle=True)",
        "read(path, allow_pickle=True)",
        "read(path, weights_only=False)",
        "pandas.read_pickle(path)",
        "yaml.unsafe_load(file)",
    ],
)
def test_what_unpickles_is_found(source: str) -> None:
    assert list(unpickling(source))
