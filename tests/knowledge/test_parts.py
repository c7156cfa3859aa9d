from __future__ import annotations

import errno
import os
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import datasets
import numpy as np
import pytest

from ragstone.encoders.load import load_encoder
from ragstone.encoders.text_encoder import TextEncoder
from ragstone.errors import InputError
from ragstone.knowledge.corpus import Corpus, read_corpus
from ragstone.knowledge.embedding import embed_groups
from ragstone.knowledge.parts import Part, Parts, keep_finished_parts, open_parts
from ragstone.knowledge.store import PassageStore
from ragstone.output import new_folder
from ragstone.types import FloatArray, Passage
from tests.conftest import DOCUMENTS


@pytest.fixture
def corpus(documents_file: Path) -> Corpus:
    return read_corpus([documents_file], 100)


@pytest.fixture(scope="module")
def encoder(models_folder: Path) -> TextEncoder:
    return load_encoder(str(models_folder / "passage_encoder"), "passage")


@pytest.fixture
def opened(tmp_path: Path, corpus: Corpus, encoder: TextEncoder) -> Callable[..., Parts]:
    """Opens the parts in tmp_path/parts, four passages in each unless told otherwise."""

    def opened(size: int = 4) -> Parts:
        return open_parts(tmp_path / "parts", corpus, encoder, "fp32", size)

    return opened


def finish(part: Part, encoder: TextEncoder) -> None:
    part.finish(embed_groups(part.groups(3), encoder, batch_size=2), encoder.dimension)


def numbers(parts: list[Part]) -> list[int]:
    return [part.number for part in parts]


def test_parts_become_a_store(tmp_path: Path, opened: Callable[..., Parts], encoder: TextEncoder) -> None:
    parts = opened()
    unfinished = parts.unfinished()
    assert (len(parts), numbers(unfinished), parts.passages_in(unfinished)) == (2, [0, 1], 6)
    assert parts.passages_in(unfinished[1:]) == 2
    texts = [[(p.title, p.text) for group in part.groups(3) for p in group] for part in unfinished]
    assert texts == [DOCUMENTS[:4], DOCUMENTS[4:]]
    # Whoever is first.
    finish(unfinished[1], encoder)
    assert numbers(parts.unfinished()) == [0]
    finish(unfinished[0], encoder)
    assert parts.unfinished() == []
    parts.make_store(tmp_path / "store", encoder.dimension)
    store = PassageStore(tmp_path / "store")
    assert [(p.title, p.text) for p in store.passages(np.arange(6))] == DOCUMENTS
    vectors = encoder.embed([text for _, text in DOCUMENTS], [title for title, _ in DOCUMENTS])
    np.testing.assert_allclose(store.vectors(np.arange(6)), vectors, rtol=1e-5, atol=1e-5)
    assert datasets.load_from_disk(str(tmp_path / "store"))["title"] == [title for title, _ in DOCUMENTS]
    assert parts.unfinished() == [], "what fails after this must not cost the vectors"


def test_a_file_system_without_hard_links(
    tmp_path: Path, opened: Callable[..., Parts], encoder: TextEncoder, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refused(*_: object) -> None:
        raise OSError(errno.EPERM, "Operation not permitted")

    parts = opened()
    for part in parts.unfinished():
        finish(part, encoder)
    monkeypatch.setattr(Path, "hardlink_to", refused)
    parts.make_store(tmp_path / "store", encoder.dimension)
    assert len(PassageStore(tmp_path / "store")) == 6
    assert numbers(parts.unfinished()) == [0, 1]


@pytest.mark.skipif(not Path("/dev/shm").is_dir(), reason="this machine has no second file system")
def test_a_store_on_another_file_system(tmp_path: Path, opened: Callable[..., Parts], encoder: TextEncoder) -> None:
    """As where the output is a symbolic link to one."""
    parts = opened()
    for part in parts.unfinished():
        finish(part, encoder)
    with tempfile.TemporaryDirectory(dir="/dev/shm") as elsewhere:
        assert Path(elsewhere).stat().st_dev != tmp_path.stat().st_dev
        parts.make_store(Path(elsewhere) / "store", encoder.dimension)
        store = PassageStore(Path(elsewhere) / "store")
        assert [passage.text for passage in store.passages(range(len(store)))] == [text for _, text in DOCUMENTS]


def test_a_second_start_goes_on(
    opened: Callable[..., Parts], encoder: TextEncoder, capsys: pytest.CaptureFixture[str]
) -> None:
    first = opened()
    part = first.unfinished()[0]
    finish(part, encoder)
    (part.folder / "00001-1234.new").write_bytes(b"as far as a killed worker came")
    written = part.finished_path.stat().st_mtime_ns
    # Another number of workers would have asked for parts of another size.
    second = opened(size=3)
    assert (len(second), numbers(second.unfinished()), second.passages_in(second.unfinished())) == (2, [1], 2)
    assert part.finished_path.stat().st_mtime_ns == written
    assert not list(part.folder.glob("*.new"))
    assert capsys.readouterr().err == f"{part.folder} has 1 of 2 parts from an earlier start.\n"


def test_a_start_that_finished_nothing_binds_nobody(opened: Callable[..., Parts]) -> None:
    opened()
    assert len(opened(size=2)) == 3


def test_other_work_is_refused(
    tmp_path: Path, opened: Callable[..., Parts], corpus: Corpus, encoder: TextEncoder, models_folder: Path
) -> None:
    finish(opened().unfinished()[0], encoder)
    (tmp_path / "other.tsv").write_text("river\tthe red river\n", encoding="utf-8")
    other = read_corpus([tmp_path / "other.tsv"], 100)
    stranger = load_encoder(str(models_folder / "question_encoder"), "passage")
    folder = tmp_path / "parts"
    before = sorted((path.name, path.stat().st_mtime_ns) for path in folder.iterdir())
    refusals = {
        "other documents or of another --max_words": lambda: open_parts(folder, other, encoder, "fp32", 4),
        f"another encoder ({encoder.name})": lambda: open_parts(folder, corpus, stranger, "fp32", 4),
        "--precision fp32": lambda: open_parts(folder, corpus, encoder, "bf16", 4),
    }
    for what, refused in refusals.items():
        with pytest.raises(InputError) as error:
            refused()
        assert str(error.value) == (
            f"{folder} has finished parts of {what}, from an earlier start; start as before to go on, or remove the "
            "folder to begin anew."
        )
    assert sorted((path.name, path.stat().st_mtime_ns) for path in folder.iterdir()) == before


def test_a_folder_of_something_else_is_left_alone(tmp_path: Path, opened: Callable[..., Parts]) -> None:
    (tmp_path / "parts").mkdir()
    (tmp_path / "parts" / "work").write_text("mine", encoding="utf-8")
    with (
        pytest.raises(InputError, match="is where the build would keep its parts, but is not empty; move it"),
        keep_finished_parts(tmp_path / "parts"),
    ):
        opened()
    assert (tmp_path / "parts" / "work").read_text(encoding="utf-8") == "mine"
    (tmp_path / "parts" / "parts.json").write_text("{", encoding="utf-8")
    with pytest.raises(InputError, match=r"parts\.json is damaged \(.*\); remove its folder to begin anew"):
        opened()


def test_documents_that_change_before_they_are_written(
    tmp_path: Path, encoder: TextEncoder, documents_file: Path
) -> None:
    (tmp_path / "documents.tsv").write_bytes(documents_file.read_bytes())
    corpus = read_corpus([tmp_path / "documents.tsv"], 100)
    with (tmp_path / "documents.tsv").open("a", encoding="utf-8") as file:
        file.write("more\tand more\n" * 9)
    with pytest.raises(InputError, match="The documents changed while they were read"):
        open_parts(tmp_path / "parts", corpus, encoder, "fp32", 4)


def test_one_process_at_a_time(opened: Callable[..., Parts], tmp_path: Path) -> None:
    folder = tmp_path / "new" / "parts"
    with keep_finished_parts(folder):
        with (
            pytest.raises(InputError, match=f"^Another process is making parts in {folder}; wait until it is done"),
            keep_finished_parts(folder),
        ):
            pytest.fail("let in")
        assert folder.exists()
    # Where nothing was made, nothing is left.
    with pytest.raises(ValueError), keep_finished_parts(folder):
        raise ValueError
    assert not folder.exists()


def test_parents_that_were_made_for_nothing_go(tmp_path: Path) -> None:
    """As where a build fails; one that something else has come into stays."""
    output = tmp_path / "a" / "b" / "source"
    for left in ([], ["note.txt"]):
        with (
            pytest.raises(ValueError),
            keep_finished_parts(output.with_name("source.parts")),
            new_folder(output, "--output_dir"),
        ):
            for name in left:
                (tmp_path / "a" / name).touch()
            raise ValueError
        assert [path.name for path in tmp_path.rglob("*")] == (["a", *left] if left else [])


@pytest.mark.parametrize("error", [KeyboardInterrupt, InputError, OSError])
def test_what_is_left_when_a_build_fails(
    opened: Callable[..., Parts],
    encoder: TextEncoder,
    capsys: pytest.CaptureFixture[str],
    error: type[BaseException],
) -> None:
    folder = opened().folder
    with pytest.raises(error), keep_finished_parts(folder):
        raise error
    assert not folder.exists()
    assert capsys.readouterr().err == ""
    finish(opened().unfinished()[1], encoder)
    with pytest.raises(error), keep_finished_parts(folder):
        raise error
    assert numbers(opened().unfinished()) == [0]
    told = capsys.readouterr().err.splitlines()[:-1]
    hint = f"{folder} keeps 1 finished part(s); the same command goes on with them."
    assert told == ([] if error is InputError else [hint])


def test_a_part_that_lacks_passages_is_made_anew(
    tmp_path: Path, opened: Callable[..., Parts], encoder: TextEncoder
) -> None:
    parts = opened()
    first, second = parts.unfinished()
    finish(first, encoder)
    second.finish(embed_groups(iter([next(second.groups(1))]), encoder, batch_size=2), encoder.dimension)
    with pytest.raises(InputError, match=r"embedded-00001.arrow had 1 passages instead of 2, and was removed; give"):
        parts.make_store(tmp_path / "store", encoder.dimension)
    assert not (tmp_path / "store").exists()
    (again,) = opened().unfinished()
    finish(again, encoder)
    parts.make_store(tmp_path / "store", encoder.dimension)
    assert len(PassageStore(tmp_path / "store")) == len(DOCUMENTS)


def test_passages_that_are_written_anew_are_another_file(opened: Callable[..., Parts], encoder: TextEncoder) -> None:
    """A worker of an earlier start, which has not ended yet, may be reading the one that is there."""
    done, part = opened().unfinished()
    finish(done, encoder)
    path = part.folder / "passages-00001.arrow"
    with path.open("rb") as reading:
        opened()
        assert not os.path.samestat(os.fstat(reading.fileno()), path.stat())
    assert [p.text for group in part.groups(1) for p in group] == [text for _, text in DOCUMENTS[4:]]
    assert not list(part.folder.glob("*.new"))


def test_two_processes_at_the_same_part(opened: Callable[..., Parts], encoder: TextEncoder) -> None:
    part = opened().unfinished()[0]
    embedded = list(embed_groups(part.groups(3), encoder, batch_size=2))

    def slowly() -> Iterator[tuple[list[Passage], FloatArray]]:
        yield embedded[0]
        part.finish(embedded, encoder.dimension)
        assert part.finished_path.exists()
        yield embedded[1]

    part.finish(slowly(), encoder.dimension)
    names = sorted(path.name for path in part.folder.iterdir())
    assert names == ["embedded-00000.arrow", "parts.json", "passages-00000.arrow", "passages-00001.arrow"]
