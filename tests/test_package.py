"""The wheel, installed where no checkout is."""

from __future__ import annotations

import ast
import os
import re
import shutil
import subprocess
import sys
import sysconfig
import tomllib
import venv
from pathlib import Path

ROOT = Path(__file__).parents[1]
SOURCES = ("pyproject.toml", "README.md", "LICENSE")
HELP = """
import sys
import ragstone
from ragstone.__main__ import main
assert main(sys.argv[1:]) == 0
print(ragstone.__file__, *sorted(sys.modules))
"""


OTHER_NAMES = {"faiss": "faiss-cpu", "yaml": "pyyaml"}
"""Packages whose name is not that of their module."""


def declared(entries: list[str]) -> set[str]:
    """The packages that requirements name, without versions and extras."""
    return {re.split(r"[^\w-]", entry)[0] for entry in entries}


def test_every_library_that_is_imported_is_declared() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    extras = project["optional-dependencies"]
    users = [entry for name, entries in extras.items() if name not in ("dev", "benchmarks") for entry in entries]
    imported: set[str] = set()
    for path in (ROOT / "ragstone").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            imported |= {name.partition(".")[0] for name in names}
    libraries = {OTHER_NAMES.get(name, name) for name in imported - sys.stdlib_module_names - {"ragstone"}}
    assert len(libraries) > 10
    assert libraries <= declared(project["dependencies"]) | declared(users)


def python_files(folder: Path) -> set[Path]:
    return {path.relative_to(folder) for path in folder.rglob("*.py")}


def test_the_wheel_works_without_the_checkout(tmp_path: Path) -> None:
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}

    def run(*command: str | Path) -> tuple[str, str]:
        done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=True)
        return done.stdout, done.stderr

    checkout, wheels, home = tmp_path / "checkout", tmp_path / "wheels", tmp_path / "venv"
    # Building leaves folders behind.
    checkout.mkdir()
    for name in SOURCES:
        shutil.copy(ROOT / name, checkout)
    shutil.copytree(ROOT / "ragstone", checkout / "ragstone", ignore=shutil.ignore_patterns("__pycache__"))
    run(sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", wheels, checkout)
    (wheel,) = wheels.glob("ragstone-*.whl")

    venv.create(home, with_pip=False)
    python = home / "bin" / "python"
    run(sys.executable, "-m", "pip", "--python", python, "install", "--no-deps", wheel)
    installed = home / "lib" / f"python{sys.version_info[0]}.{sys.version_info[1]}" / "site-packages"
    assert python_files(installed / "ragstone") == python_files(ROOT / "ragstone")
    assert (installed / "ragstone" / "py.typed").is_file()
    # The libraries are those of this environment, which follow on the path; its own Ragstone is none of them.
    (installed / "libraries.pth").write_text(f"{sysconfig.get_path('purelib')}\n", encoding="utf-8")

    ragstone = home / "bin" / "ragstone"
    out, err = run(ragstone, "--help")
    assert out.startswith("usage: ragstone COMMAND [flags]\n")
    assert err == ""
    for words in (["--help"], ["finetune", "--help"]):
        out, _ = run(python, "-c", HELP, *words)
        file, *modules = out.splitlines()[-1].split()
        assert Path(file).is_relative_to(home)
        assert not {"torch", "transformers", "faiss"} & set(modules)
    (tmp_path / "dpr.json").write_text(
        '[{"question": "what is blue ?", "answers": ["the river"], "positive_ctxs": [{"title": "river", "text": "t"}]}]'
    )
    run(ragstone, "parse-dpr", "--src_path=dpr.json", "--evaluation_set=questions", "--gold_data_path=titles")
    assert (tmp_path / "questions").read_text(encoding="utf-8") == "what is blue ?\n"
    assert (tmp_path / "titles").read_text(encoding="utf-8") == "river\n"
