from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
import yaml

from ragstone.__main__ import main
from ragstone.knowledge.source import PASSAGES_NAME, KnowledgeSource
from ragstone.model.open import ModelRequest, open_model
from tests.commands.conftest import refused
from tests.conftest import DOCUMENTS, build_source


@pytest.fixture
def source(source_folder: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(source_folder, tmp_path / "work" / "knowledge"))


@pytest.fixture
def more(tmp_path: Path) -> Path:
    path = tmp_path / "more.tsv"
    path.write_text("king\tanna was the king of the red bridge\nmara\tmara founded a town\n", encoding="utf-8")
    return path


def titles(folder: Path) -> list[str]:
    source = KnowledgeSource(folder)
    return [passage.title for passage in source.store.passages(np.arange(len(source)))]


def test_all_flags(
    source: Path, more: Path, models_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """As a user types them; the source is what a build from the changed documents makes."""
    (tmp_path / "gone.txt").write_text("river\nhill\n", encoding="utf-8")
    flags = f"--add_csv_path {more} --replace --delete_titles stone --delete_titles_path {tmp_path / 'gone.txt'}"
    extra = f"--dpr_ctx_encoder_model_name {models_folder / 'passage_encoder'} --batch-size 1 --precision fp32"
    assert main(["update-knowledge", str(source), *flags.split(), *extra.split()]) == 0
    out = capsys.readouterr().out
    assert "changes           2 passages added, 4 deleted" in out
    assert titles(source) == ["bridge", "town", "king", "mara"]
    kept = [f"{title}\t{text}\n" for title, text in DOCUMENTS if title in ("bridge", "town")]
    (tmp_path / "all.tsv").write_text("".join(kept) + more.read_text(encoding="utf-8"), encoding="utf-8")
    built = KnowledgeSource(build_source(tmp_path / "all.tsv", tmp_path / "built", models_folder / "passage_encoder"))
    updated = KnowledgeSource(source)
    np.testing.assert_allclose(updated.store.vectors(range(4)), built.store.vectors(range(4)), rtol=1e-5, atol=1e-6)
    assert updated.manifest is not None
    assert (updated.manifest.documents, updated.manifest.passages, updated.manifest.index) == (4, 4, "Flat")
    assert main(["verify", str(source)]) == 0
    saved = yaml.safe_load((source / "update.yaml").read_text(encoding="utf-8"))
    assert (saved["replace"], saved["delete_titles"]) == (True, ["stone"])
    assert (source / "settings.yaml").is_file()
    assert [path.name for path in source.parent.iterdir()] == ["knowledge"]


def test_a_checkpoints_path_stays_valid(source: Path, more: Path, checkpoint_folder: Path, tmp_path: Path) -> None:
    request = ModelRequest(str(checkpoint_folder), passages_path=str(source), n_docs=7)
    open_model(request).save(tmp_path / "rag")
    assert main(["update-knowledge", "--passages_path", str(source / PASSAGES_NAME), "--add_csv_path", str(more)]) == 0
    (found,) = open_model(ModelRequest(str(tmp_path / "rag"))).retrieve(["who was king ?"])
    assert "anna was the king of the red bridge" in [entry.passage.text for entry in found]


def test_into_another_folder(source: Path, tmp_path: Path) -> None:
    before = {path: path.read_bytes() for path in source.rglob("*") if path.is_file()}
    words = ["update-knowledge", str(source), "--delete_titles", "king", "--output_dir", str(tmp_path / "new")]
    assert main(words) == 0
    assert {path: path.read_bytes() for path in source.rglob("*") if path.is_file()} == before
    assert titles(tmp_path / "new") == [title for title, _ in DOCUMENTS if title != "king"]


def test_another_index(source: Path) -> None:
    assert main(["update-knowledge", str(source), "--index", "hnsw", "--m", "8"]) == 0
    manifest = KnowledgeSource(source).manifest
    assert manifest is not None
    assert (manifest.index, manifest.passages) == ("HNSW8,Flat", 6)


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ("", "There is nothing to change; give --add_csv_path"),
        ("--replace", "--replace needs --add_csv_path"),
        ("--add_csv_path nowhere.tsv", "There is no file nowhere.tsv; give --add_csv_path files"),
        ("--delete_titles nobody", "has no passage of 1 of the titles that are to be deleted ('nobody')"),
        ("--delete_titles_path nowhere.txt", "nowhere.txt cannot be read"),
        ("--delete_titles king --m 0", "--m is 0, but must be at least 1"),
        ("--delete_titles king --precision fp16", "fp16 needs a GPU"),
        ("--index IVF99,Flat", "The index IVF99,Flat cannot be built over 6 vectors"),
        ("--add_csv_path {more} --dpr_ctx_encoder_model_name {bert}", "they differ in the weights"),
    ],
)
def test_what_cannot_be_used_is_refused(
    source: Path, more: Path, plain_bert_folder: Path, capsys: pytest.CaptureFixture[str], flags: str, message: str
) -> None:
    before = {path: path.read_bytes() for path in source.rglob("*") if path.is_file()}
    words = flags.format(more=more, bert=plain_bert_folder).split()
    assert message in refused(capsys, ["update-knowledge", str(source), *words])
    assert {path: path.read_bytes() for path in source.rglob("*") if path.is_file()} == before
    assert [path.name for path in source.parent.iterdir()] == ["knowledge"]


def test_a_source_that_names_no_encoder(
    source: Path, more: Path, models_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (source / "knowledge.json").unlink()
    words = ["update-knowledge", str(source), f"--add_csv_path={more}"]
    assert "does not say which encoder made its vectors; name it with --dpr_ctx_encoder" in refused(capsys, words)
    assert main([*words, f"--dpr_ctx_encoder_model_name={models_folder / 'passage_encoder'}"]) == 0
    assert titles(source)[-2:] == ["king", "mara"]
    assert main([*words]) == 0, "it is recorded now"


def test_a_source_of_words_alone(
    bm25_source: Path, more: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "updated"
    assert main(["update-knowledge", str(bm25_source), f"--add_csv_path={more}", f"--output_dir={output}"]) == 0
    out = capsys.readouterr().out
    assert "changes           2 passages added, 0 deleted" in out and "BM25" in out and "recall" not in out
    assert titles(output)[-2:] == ["king", "mara"]


def test_no_source(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["update-knowledge", str(tmp_path / "nowhere"), "--delete_titles", "king"]
    assert f"There is no knowledge source {tmp_path / 'nowhere'}" in refused(capsys, words)
