"""ragstone import-knowledge: passages and vectors that were made elsewhere, and what is refused."""

from __future__ import annotations

import gzip
import json
import shlex
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from ragstone.__main__ import main
from ragstone.encoders.load import load_encoder
from ragstone.knowledge.source import PASSAGES_NAME, KnowledgeSource
from ragstone.knowledge.verify import verify_source
from tests.commands.conftest import refused
from tests.commands.test_import_legacy import write_legacy
from tests.conftest import DOCUMENTS, build_source

COUNT, DIMENSION = 40, 8
VECTORS = np.random.default_rng(0).standard_normal((COUNT, DIMENSION)).astype(np.float32)
TEXTS = [f'passage {i} says "yes"\tor no' for i in range(COUNT)]
TITLES = [f"title {i // 4}" for i in range(COUNT)]


def write_passages(path: Path, rows: range = range(COUNT), header: bool = True, damage: str = "") -> Path:
    """A file like psgs_w100.tsv; `damage` stands as a line in its middle."""
    lines = ["id\ttext\ttitle"] if header else []
    for row in rows:
        text = TEXTS[row].replace('"', '""')
        lines.append(f'{row + 1}\t"{text}"\t{TITLES[row]}')
        if damage and row == 20:
            lines.append(damage)
    content = ("\n".join(lines) + "\n").encode()
    path.write_bytes(gzip.compress(content) if path.suffix == ".gz" else content)
    return path


def in_parts(folder: Path, write: Any) -> Path:
    """Vectors in eleven files without ids, whose numbers have no leading zeros."""
    for number, part in enumerate(np.array_split(VECTORS, 11)):
        write(part, folder / f"vectors_{number}")
    return folder


def shuffled_pairs(folder: Path) -> Path:
    """Two .pt files as Tevatron writes them, with ids, in another order than the passages."""
    order = np.random.default_rng(1).permutation(COUNT)
    for number, rows in enumerate(np.array_split(order, 2)):
        ids = [str(row + 1) for row in rows]
        torch.save((torch.from_numpy(VECTORS[rows]), ids), folder / f"corpus{number}.pt")
    return folder


FORMATS = {
    "npy": lambda folder: in_parts(folder, lambda part, path: np.save(path.with_suffix(".npy"), part)),
    "half": lambda folder: in_parts(folder, lambda part, path: np.save(path.with_suffix(".npy"), part.astype("f2"))),
    "pt": lambda folder: in_parts(folder, lambda part, path: torch.save(torch.from_numpy(part), f"{path}.pt")),
    "pairs": shuffled_pairs,
}


@pytest.mark.parametrize("kind", FORMATS)
@pytest.mark.parametrize("name", ["psgs_w100.tsv", "psgs_w100.tsv.gz"])
def test_passages_and_vectors_become_a_source(tmp_path: Path, kind: str, name: str) -> None:
    (tmp_path / "folder").mkdir()
    write_passages(FORMATS[kind](tmp_path / "folder") / name, header=name.endswith("tsv"))
    output = tmp_path / "source"
    assert main(["import-knowledge", str(tmp_path / "folder"), "--output_dir", str(output), "--index=flat"]) == 0
    report = verify_source(output)
    assert (report.passages, report.dimension, report.recall["recall@5"]) == (COUNT, DIMENSION, 1)
    assert report.manifest is not None
    assert (report.manifest.encoder, report.manifest.documents, report.manifest.max_words) == (None, 10, 5)
    source = KnowledgeSource(output)
    rows = np.arange(COUNT)
    np.testing.assert_allclose(source.store.vectors(rows), VECTORS, rtol=1e-3 if kind == "half" else 0)
    assert [(p.title, p.text) for p in source.store.passages(rows)] == list(zip(TITLES, TEXTS, strict=True))


def test_the_encoder_that_made_the_vectors_is_recorded(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], models_folder: Path, documents_file: Path
) -> None:
    """The source is the one that build-knowledge makes; one of other dimensions is refused."""
    encoder = models_folder / "passage_encoder"
    built = build_source(documents_file, tmp_path / "built", encoder)
    lines = [f"{number}\t{text}\t{title}\n" for number, (title, text) in enumerate(DOCUMENTS)]
    (tmp_path / "passages.tsv").write_text("".join(lines), encoding="utf-8")
    np.save(tmp_path / "vectors.npy", KnowledgeSource(built).store.vectors(np.arange(len(DOCUMENTS))))
    flags = ["import-knowledge", str(tmp_path), f"--dpr_ctx_encoder_model_name={encoder}", "--index=flat"]
    assert main([*flags, f"--output_dir={tmp_path / 'imported'}"]) == 0
    assert "No encoder was named" not in capsys.readouterr().err
    assert main([*flags[:2], "--index=flat", f"--output_dir={tmp_path / 'unnamed'}"]) == 0
    assert capsys.readouterr().err.count("No encoder was named, so the only check on a model") == 1
    mine, other = (json.loads((tmp_path / name / "knowledge.json").read_text()) for name in ("imported", "built"))
    for key in ("encoder", "encoder_fingerprint", "dimension", "passages", "index"):
        assert mine[key] == other[key]
    shards = [sorted((tmp_path / name / PASSAGES_NAME).glob("*.arrow")) for name in ("imported", "built")]
    assert [path.read_bytes() for path in shards[0]] == [path.read_bytes() for path in shards[1]]
    assert mine["encoder_fingerprint"] == load_encoder(str(encoder), "passage").fingerprint()
    np.save(tmp_path / "vectors.npy", VECTORS[:6])
    message = refused(capsys, [*flags, f"--output_dir={tmp_path / 'other'}"])
    assert "has vectors of 8 dimensions, but the passage encoder" in message and "makes 16" in message


class Trap:
    """Unpickling it would create a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return Path.touch, (self.path,)


def no_passages(folder: Path) -> None:
    (folder / "psgs.tsv").unlink()


def two_passages(folder: Path) -> None:
    write_passages(folder / "more.tsv")


def no_vectors(folder: Path) -> None:
    (folder / "vectors.npy").unlink()


def both_kinds(folder: Path) -> None:
    torch.save(torch.ones(COUNT, DIMENSION), folder / "vectors.pt")


def too_few(folder: Path) -> None:
    np.save(folder / "vectors.npy", VECTORS[:30])


def uneven(folder: Path) -> None:
    np.save(folder / "vectors2.npy", VECTORS[:, :4])


def short_line(folder: Path) -> None:
    write_passages(folder / "psgs.tsv", damage="21\tno title")


def no_matrix(folder: Path) -> None:
    np.save(folder / "vectors.npy", np.arange(COUNT))


def not_finite(folder: Path) -> None:
    np.save(folder / "vectors.npy", np.where(np.arange(COUNT)[:, None] == 33, np.nan, VECTORS))


def objects(folder: Path) -> None:
    np.save(folder / "vectors.npy", np.array([Trap(folder / "sprung")] * COUNT), allow_pickle=True)


def pickled(folder: Path) -> None:
    (folder / "vectors.npy").unlink()
    torch.save({"vectors": Trap(folder / "sprung")}, folder / "vectors.pt")


def other_ids(folder: Path) -> None:
    (folder / "vectors.npy").unlink()
    torch.save((torch.from_numpy(VECTORS), list(range(COUNT))), folder / "vectors.pt")


def cut_off(folder: Path) -> None:
    (folder / "psgs.tsv").unlink()
    path = write_passages(folder / "psgs.tsv.gz")
    path.write_bytes(path.read_bytes()[:-20])


@pytest.mark.parametrize(
    ("spoil", "part"),
    [
        (no_passages, "should hold one .tsv or .tsv.gz of passages, but has none; give --passages"),
        (two_passages, "but has more.tsv, psgs.tsv; give --passages"),
        (no_vectors, "has neither .npy nor .pt files; give --vectors"),
        (both_kinds, "has both .npy and .pt files; give --vectors"),
        (too_few, "psgs.tsv holds 40 passages, but there are 30 vectors in 1 file(s)"),
        (uneven, "vectors.npy has vectors of 8 dimensions, but"),
        (short_line, "psgs.tsv, line 23: 2 column(s) instead of 3"),
        (
            no_matrix,
            "vectors.npy holds int64 of shape [40]; it should hold a matrix of numbers with a row for each passage",
        ),
        (not_finite, "vectors.npy, row 33: the vector is not finite"),
        (
            objects,
            "is not a .npy file of numbers (Array can't be memory-mapped: Python objects in dtype); save the numbers",
        ),
        (pickled, "vectors.pt holds more than tensors and plain values, which is not unpickled"),
        (other_ids, "psgs.tsv, line 41: the passage '40' has no vector"),
        (cut_off, "psgs.tsv.gz cannot be read: Compressed file ended before the end-of-stream marker"),
    ],
    ids=lambda value: value.__name__ if callable(value) else "",
)
def test_what_cannot_be_used(tmp_path: Path, capsys: pytest.CaptureFixture[str], spoil: Any, part: str) -> None:
    folder = tmp_path / "folder"
    folder.mkdir()
    write_passages(folder / "psgs.tsv")
    np.save(folder / "vectors.npy", VECTORS)
    spoil(folder)
    message = refused(capsys, ["import-knowledge", str(folder), f"--output_dir={tmp_path / 'source'}", "--index=flat"])
    assert part in message
    assert not (tmp_path / "source").exists()
    assert not (folder / "sprung").exists()


def test_a_pickle_is_told_by_its_name(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    flags = ["import-knowledge", f"--output_dir={tmp_path / 'source'}", f"--passages={write_passages(tmp_path / 'p')}"]
    assert "neither a .npy nor a .pt file; pickles are not read" in refused(
        capsys, [*flags, "--vectors", "wiki_00.pkl"]
    )
    assert "or both --passages and --vectors" in refused(capsys, flags)


def test_the_documentations_commands(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], checkpoint_folder: Path
) -> None:
    """Every command of docs/bring-an-index.md, in a folder that holds what the page says."""
    vectors = np.random.default_rng(4).standard_normal((COUNT, 16)).astype(np.float32)
    (tmp_path / "dpr-files").mkdir()
    write_passages(tmp_path / "dpr-files" / "psgs_w100.tsv")
    np.save(tmp_path / "dpr-files" / "vectors_0.npy", vectors)
    write_legacy(tmp_path / "old-index")
    (tmp_path / "rag").symlink_to(checkpoint_folder)
    monkeypatch.chdir(tmp_path)
    page = (Path(__file__).parents[2] / "docs" / "bring-an-index.md").read_text(encoding="utf-8")
    commands = [shlex.split(line)[1:] for line in page.splitlines() if line.startswith("    ragstone ")]
    assert [words[0] for words in commands] == ["import-knowledge", "ask", "import-legacy", "ask"]
    for words in commands:
        capsys.readouterr()
        assert main(words) == 0, words
        assert ("A: " if words[0] == "ask" else "knowledge source  ") in capsys.readouterr().out
