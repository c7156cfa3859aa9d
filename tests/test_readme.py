"""What README.md says is so: its commands and its Python run, its tree is the package."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from ragstone.__main__ import main
from ragstone.commands.table import SUMMARIES
from ragstone.encoders.fresh import fresh_encoder, train_tokenizer
from ragstone.encoders.load import save_encoder
from tests.conftest import DOCUMENTS
from tests.test_import_order import ORDER

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
PAIRS = [("who founded the town ?", "otto"), ("what is the river ?", "blue"), ("who was the king ?", "mara")]


def tree() -> list[str]:
    """The paths that the tree under "Architecture" draws, relative to the repository."""
    section = README[README.index("## Architecture") : README.index("## Documentation")]
    parents: dict[int, str] = {}
    paths = []
    for line in section.splitlines():
        found = re.match(r"    ( *)(\S+(?:/|\.py))(?: |$)", line)
        if found is None:
            continue
        depth, name = len(found[1]), found[2]
        parents = {level: parent for level, parent in parents.items() if level < depth}
        paths.append("".join(parents.values()) + name)
        if name.endswith("/"):
            parents[depth] = name
    return paths


@pytest.fixture
def corpus(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, models_folder: Path) -> Path:
    """A folder with what README.md starts from; tiny models stand where the hub's names point to."""
    texts = [f"{title} {text}" for title, text in DOCUMENTS] + [question for question, _ in PAIRS]
    encoder = fresh_encoder(train_tokenizer(texts, 300), hidden_size=16, layers=1, heads=2, max_length=64, seed=0)
    (tmp_path / "sentence-transformers").mkdir()
    save_encoder(encoder, tmp_path / "sentence-transformers" / "all-MiniLM-L6-v2")
    (tmp_path / "facebook").mkdir()
    (tmp_path / "facebook" / "bart-base").symlink_to(models_folder / "generator")
    (tmp_path / "documents.tsv").write_text("".join(f"{title}\t{text}\n" for title, text in DOCUMENTS))
    (tmp_path / "data").mkdir()
    for split in ("train", "val", "test"):
        (tmp_path / "data" / f"{split}.source").write_text("".join(f"{question}\n" for question, _ in PAIRS))
        (tmp_path / "data" / f"{split}.target").write_text("".join(f"{answer}\n" for _, answer in PAIRS))
    (tmp_path / "data" / "test.pages").write_text("town\nriver\nking\n")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_the_eight_commands(corpus: Path, capsys: pytest.CaptureFixture[str]) -> None:
    section = README[README.index("## Your own corpus") : README.index("## The same from Python")]
    commands = [shlex.split(line)[1:] for line in section.splitlines() if line.startswith("    ragstone ")]
    assert len(commands) == 8
    for words in commands:
        assert main(words) == 0, words
    out = capsys.readouterr().out
    assert "against out/rag.txt:" in out
    assert "A: " in out and "posterior" in out


def test_the_python_block(corpus: Path) -> None:
    (block,) = re.findall(r"```python\n(.*?)```", README, flags=re.DOTALL)
    (corpus / "block.py").write_text(block, encoding="utf-8")
    done = subprocess.run([sys.executable, "-W", "error", "block.py"], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert re.search(r"^EM \d+\.\d, 95 % interval ", done.stdout, flags=re.MULTILINE)
    assert done.stdout.count(" of the answer comes from ") == 5


def test_every_entry_of_the_tree_is_there() -> None:
    paths = tree()
    assert len(paths) > 30
    assert [path for path in paths if not (ROOT / path).exists()] == []
    assert all((ROOT / path).is_dir() == path.endswith("/") for path in paths)


def test_the_tree_has_every_package_and_module_in_the_order_of_imports() -> None:
    drawn = [path.removeprefix("ragstone/") for path in tree() if re.fullmatch(r"ragstone/[^/]+/?", path)]
    there = {
        f"{path.name}/" if path.is_dir() else path.name
        for path in (ROOT / "ragstone").iterdir()
        if path.suffix == ".py" or (path / "__init__.py").is_file()
    }
    assert sorted(drawn) == sorted(there - {"__init__.py"})
    rank = {part: place for place, parts in enumerate(ORDER) for part in parts}
    places = [rank[re.sub(r"(/|\.py)$", "", name)] for name in drawn]
    assert places == sorted(places)


def test_two_commands_near_the_top_do_all_set_up() -> None:
    top = README[: README.index("## ")]
    commands = [line.split("#")[0].split() for line in top.splitlines() if line.startswith("    ")]
    assert commands == [["make", "demo"], ["make", "test"]]
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    assert all(f"\n{target}: $(READY)\n" in makefile for _, target in commands)


@pytest.mark.parametrize("before", [None, "almanac.tsv", "notes.txt"])
def test_make_demo_replaces_an_earlier_demo_and_nothing_else(tmp_path: Path, before: str | None) -> None:
    """With the installed program replaced by one that lists what is in the folder."""
    (tmp_path / "Makefile").write_bytes((ROOT / "Makefile").read_bytes())
    for name in ("pyproject.toml", "constraints.txt"):
        (tmp_path / name).touch()
        os.utime(tmp_path / name, (0, 0))
    program = tmp_path / ".venv" / "bin" / "ragstone"
    program.parent.mkdir(parents=True)
    program.write_text('#!/bin/sh\necho "$@"\nls demo 2>/dev/null\nexit 0\n')
    program.chmod(0o755)
    (tmp_path / ".venv" / ".ready").touch()
    if before is not None:
        (tmp_path / "demo").mkdir()
        (tmp_path / "demo" / before).touch()
    done = subprocess.run(["make", "-s", "demo"], cwd=tmp_path, capture_output=True, text=True, check=True)
    expected = ["demo --output_dir demo"]
    if before == "almanac.tsv":
        expected.insert(0, "demo/ holds an earlier demo, which is removed.")
    elif before is not None:
        expected.append(before)
    assert done.stdout.splitlines() == expected


def test_commands_that_are_named_are_there() -> None:
    named = set(re.findall(r"ragstone ([a-z]+(?:-[a-z]+)*)", README)) - {"COMMAND"}
    assert named <= set(SUMMARIES)


def test_links_point_to_files() -> None:
    links = re.findall(r"\]\(([^)#]+)\)", README)
    local = [link for link in links if "://" not in link]
    assert local
    assert [link for link in local if not (ROOT / link).exists()] == []
