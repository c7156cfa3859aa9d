from __future__ import annotations

import errno
import threading
from pathlib import Path

import pytest

from ragstone import replacement
from ragstone.errors import InputError
from ragstone.replacement import exchange, new_version, read_one_version


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder of two files that belong together."""
    folder = tmp_path / "folder"
    folder.mkdir()
    write(folder, "old")
    return folder


def write(folder: Path, text: str) -> None:
    for name in ("first", "second"):
        (folder / name).write_text(text, encoding="utf-8")


def read(folder: Path) -> list[str]:
    return [(folder / name).read_text(encoding="utf-8") for name in ("first", "second")]


def test_the_new_version_comes_when_it_is_whole(folder: Path) -> None:
    folder.chmod(0o750)
    with (folder / "first").open(encoding="utf-8") as file, new_version(folder) as new:
        write(new, "new")
        assert read(folder) == ["old", "old"]
        opened_before = file
        assert opened_before.read() == "old"
    assert read(folder) == ["new", "new"]
    assert folder.stat().st_mode & 0o777 == 0o750
    assert [path.name for path in folder.parent.iterdir()] == ["folder"]


def test_a_file_that_is_open_stays_readable(folder: Path) -> None:
    with (folder / "first").open(encoding="utf-8") as file:
        with new_version(folder) as new:
            write(new, "new")
        assert file.read() == "old"


@pytest.mark.parametrize("error", [KeyboardInterrupt, ValueError])
def test_an_interruption_leaves_the_old_version(folder: Path, error: type[BaseException]) -> None:
    with pytest.raises(error), new_version(folder) as new:
        write(new, "new")
        raise error
    assert read(folder) == ["old", "old"]
    assert [path.name for path in folder.parent.iterdir()] == ["folder"]


def test_what_a_killed_process_left_is_removed(folder: Path) -> None:
    left = folder.with_name(f".folder{replacement.WORKSHOP_SUFFIX}")
    (left / "new").mkdir(parents=True)
    write(left / "new", "half")
    with new_version(folder) as new:
        assert not any(new.iterdir())
        write(new, "new")
    assert read(folder) == ["new", "new"]
    assert [path.name for path in folder.parent.iterdir()] == ["folder"]


def test_a_link_to_the_folder_stays_one(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(folder)
    with new_version(tmp_path / "link") as new:
        write(new, "new")
    assert (tmp_path / "link").is_symlink()
    assert read(folder) == ["new", "new"]


def test_two_at_once_are_refused(folder: Path) -> None:
    with new_version(folder) as new:
        with pytest.raises(InputError, match="is being updated by another process"), new_version(folder):
            pass
        write(new, "new")
    assert read(folder) == ["new", "new"]


def test_a_folder_that_was_moved_meanwhile_is_left_alone(folder: Path) -> None:
    with pytest.raises(InputError, match="was moved or replaced meanwhile"), new_version(folder) as new:
        write(new, "new")
        folder.rename(folder.with_name("moved"))
        folder.mkdir()
        write(folder, "other")
    assert read(folder) == ["other", "other"]


def test_a_file_system_that_cannot_exchange_is_refused_at_once(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise OSError(errno.EINVAL, "Invalid argument")

    monkeypatch.setattr(replacement, "exchange", refuse)
    with pytest.raises(InputError, match=r"cannot exchange two folders in one step.*--output_dir"), new_version(folder):
        pytest.fail("work was begun")
    assert [path.name for path in folder.parent.iterdir()] == ["folder"]


def test_exchange_is_one_step_or_an_error(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(OSError, match="No such file"):
        exchange(tmp_path / "nothing", folder)
    assert read(folder) == ["old", "old"]


def test_whoever_reads_meanwhile_reads_one_version(folder: Path) -> None:
    """A plain reader, which opens one file after the other, gets two versions mixed at times."""
    done = threading.Event()

    def replace() -> None:
        for number in range(60):
            with new_version(folder) as new:
                write(new, str(number))
        done.set()

    thread = threading.Thread(target=replace)
    thread.start()
    seen = set()
    while not done.is_set():
        first, second = read_one_version(folder, lambda: read(folder))
        assert first == second
        seen.add(first)
    thread.join()
    assert len(seen) > 5


def test_a_version_that_comes_in_the_middle_of_reading_is_read_instead(folder: Path) -> None:
    readings = []

    def slowly() -> list[str]:
        first = (folder / "first").read_text(encoding="utf-8")
        if not readings:
            with new_version(folder) as new:
                write(new, "new")
        readings.append(first)
        return [first, (folder / "second").read_text(encoding="utf-8")]

    assert read_one_version(folder, slowly) == ["new", "new"]
    assert readings == ["old", "new"]


def test_a_fault_that_no_update_explains_is_told(folder: Path) -> None:
    (folder / "second").unlink()
    with pytest.raises(FileNotFoundError):
        read_one_version(folder, lambda: read(folder))
    with pytest.raises(FileNotFoundError):
        read_one_version(folder / "nowhere", lambda: read(folder / "nowhere"))
