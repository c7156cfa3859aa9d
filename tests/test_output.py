"""Files and folders that appear whole or not at all."""

from __future__ import annotations

from pathlib import Path

import pytest

from ragstone.errors import InputError
from ragstone.output import new_folder, write_lines, write_text


def names(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*"))


@pytest.mark.parametrize("exists", [False, True])
def test_appears_when_all_is_written(tmp_path: Path, exists: bool) -> None:
    target = tmp_path / "out"
    if exists:
        target.mkdir()
    with new_folder(target, "--output_dir") as folder:
        (folder / "file").write_text("text")
        assert not (target / "file").exists()
    assert names(tmp_path) == ["out", "out/file"]
    plain = tmp_path / "plain"
    plain.mkdir()
    assert target.stat().st_mode == plain.stat().st_mode, "as open to others as any folder of the user"


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
def test_nothing_is_left_when_writing_fails(tmp_path: Path, error: type[BaseException]) -> None:
    with pytest.raises(error), new_folder(tmp_path / "new" / "deep" / "out", "--output_dir") as folder:
        (folder / "file").write_text("text")
        raise error
    assert names(tmp_path) == []


def test_parents_are_made(tmp_path: Path) -> None:
    with new_folder(tmp_path / "new" / "out", "--output_dir"):
        pass
    assert names(tmp_path) == ["new", "new/out"]


def test_the_current_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    with new_folder(Path(), "--output_dir") as folder:
        (folder / "file").write_text("text")
    assert names(tmp_path) == ["here", "here/file"]


@pytest.mark.parametrize("kind", ["folder", "file"])
def test_another_runs_work_is_refused(tmp_path: Path, kind: str) -> None:
    target = tmp_path / "out"
    if kind == "folder":
        target.mkdir()
        (target / "work").write_text("kept")
    else:
        target.write_text("kept")
    before = names(tmp_path)
    message = "out is not empty; give a new or an empty folder to --dest"
    with pytest.raises(InputError, match=message), new_folder(target, "--dest"):
        pass
    assert names(tmp_path) == before


def test_a_place_where_nothing_can_be_made(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("no folder")
    with (
        pytest.raises(InputError, match=r"out cannot be made: .*; give another to --dest"),
        new_folder(tmp_path / "file" / "out", "--dest"),
    ):
        pass
    assert names(tmp_path) == ["file"]


def test_files_are_replaced_whole(tmp_path: Path) -> None:
    write_lines(tmp_path / "file", ["zwölf", "", "b"])
    assert (tmp_path / "file").read_bytes() == "zwölf\n\nb\n".encode()
    with pytest.raises(UnicodeEncodeError):
        write_text(tmp_path / "file", "half \ud800")
    assert (tmp_path / "file").read_bytes() == "zwölf\n\nb\n".encode()
    assert names(tmp_path) == ["file"]
    write_text(tmp_path / "new" / "folder" / "file", "text")
    assert (tmp_path / "new" / "folder" / "file").read_text() == "text"


def test_a_text_that_is_interrupted_leaves_the_old_one_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "metrics.json"
    write_text(path, "old")

    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(Path, "replace", interrupt)
    with pytest.raises(KeyboardInterrupt):
        write_text(path, "new")
    assert [(found.name, found.read_text()) for found in tmp_path.iterdir()] == [("metrics.json", "old")]
