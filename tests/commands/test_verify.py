"""ragstone verify on the command line: sound folders pass, each kind of damage is named."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from ragstone.__main__ import main
from ragstone.commands.verify import VerifySettings, verify
from ragstone.encoders.dense import Dense
from ragstone.encoders.load import load_encoder, save_encoder
from ragstone.errors import InputError
from ragstone.index.vector_index import build_index
from ragstone.knowledge.source import INDEX_NAME, PASSAGES_NAME
from ragstone.knowledge.store import PassageStore, PassageWriter
from ragstone.knowledge.verify import SourceReport
from ragstone.model.verify import CheckpointReport
from tests.commands.conftest import refused
from tests.conftest import join_models


@pytest.fixture
def source(tmp_path: Path, source_folder: Path) -> Path:
    """A copy of the knowledge source that may be damaged."""
    return Path(shutil.copytree(source_folder, tmp_path / "knowledge"))


@pytest.fixture
def checkpoint(tmp_path: Path, checkpoint_folder: Path) -> Path:
    """A copy of the checkpoint that may be damaged."""
    return Path(shutil.copytree(checkpoint_folder, tmp_path / "rag"))


def bare_source(folder: Path, factory: str, vectors: np.ndarray) -> Path:
    """A source as the reference's script leaves it: without knowledge.json."""
    with PassageWriter(folder / PASSAGES_NAME, vectors.shape[1]) as writer:
        writer.write(["title"] * len(vectors), [f"text {i}" for i in range(len(vectors))], vectors)
    build_index(lambda: iter([vectors]), len(vectors), vectors.shape[1], factory, folder / INDEX_NAME)
    return folder


def vectors(seed: int = 0, count: int = 300) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal((count, 8)).astype(np.float32)


def flip(path: Path, place: int) -> None:
    """Change one bit of a file."""
    content = bytearray(path.read_bytes())
    content[place] ^= 1
    path.write_bytes(content)


def shard(folder: Path) -> Path:
    return next((folder / PASSAGES_NAME).glob("*.arrow"))


def refusal(path: Path, capsys: pytest.CaptureFixture[str]) -> str:
    """The one sentence with which `path` is refused."""
    return refused(capsys, ["verify", str(path)])


def test_a_sound_source(source: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["verify", str(source)]) == 0
    shown = capsys.readouterr().out
    assert "4 files as they were built" in shown
    assert "passages          6\n" in shown
    assert "16 dimensions, all finite" in shown
    assert "recall@5, @20     1.000, 1.000" in shown
    assert shown.endswith("sound\n")
    # Its passages folder stands for it, and the flag may be written.
    assert main(["verify", "--path", str(source / PASSAGES_NAME)]) == 0


@pytest.mark.parametrize("factory", ["Flat", "HNSW16,Flat", "IVF4,SQ8"])
def test_a_source_without_knowledge_json(tmp_path: Path, factory: str) -> None:
    report = verify(VerifySettings(bare_source(tmp_path / "bare", factory, vectors())))
    assert isinstance(report, SourceReport)
    assert (report.manifest, report.files, report.passages, report.dimension) == (None, 0, 300, 8)
    assert report.recall["recall@20"] > 0.9
    assert verify(VerifySettings(tmp_path / "bare" / PASSAGES_NAME)).passages == 300  # type: ignore[union-attr]


@pytest.mark.parametrize("name", [INDEX_NAME, "arrow", "state.json", "dataset_info.json"])
def test_one_changed_bit_is_found(source: Path, name: str, capsys: pytest.CaptureFixture[str]) -> None:
    path = shard(source) if name == "arrow" else source / name
    path = path if path.is_file() else source / PASSAGES_NAME / name
    flip(path, path.stat().st_size // 2)
    message = refusal(source, capsys)
    assert f"{path} is damaged: its checksum is not the one in knowledge.json; copy it again" in message


def test_a_missing_file(source: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (source / INDEX_NAME).unlink()
    assert f"{source / INDEX_NAME} is missing, but knowledge.json lists it" in refusal(source, capsys)


@pytest.mark.parametrize(("key", "value"), [("passages", 7), ("dimension", 8)])
def test_counts_that_are_not_the_manifests(
    source: Path, key: str, value: int, capsys: pytest.CaptureFixture[str]
) -> None:
    manifest = json.loads((source / "knowledge.json").read_text())
    (source / "knowledge.json").write_text(json.dumps({**manifest, key: value}))
    assert f"knowledge.json states {value} {key.removesuffix('s')}s, but" in refusal(source, capsys)


def test_a_damaged_manifest(source: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (source / "knowledge.json").write_text('{"encoder": "x"}')
    assert "knowledge.json is damaged" in refusal(source, capsys)


@pytest.mark.parametrize("factory", ["Flat", "HNSW16,Flat"])
def test_without_checksums_a_changed_vector_is_found(
    tmp_path: Path, factory: str, capsys: pytest.CaptureFixture[str]
) -> None:
    numbers = vectors()
    folder = bare_source(tmp_path / "bare", factory, numbers)
    content = (folder / INDEX_NAME).read_bytes()
    flip(folder / INDEX_NAME, content.index(numbers[17].tobytes()))
    message = refusal(folder, capsys)
    assert f"{folder / INDEX_NAME} holds another vector than the passages in row 17" in message


def test_without_checksums_a_link_to_nowhere_is_found(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    import faiss

    folder = bare_source(tmp_path / "bare", "HNSW16,Flat", vectors())
    index = faiss.read_index(str(folder / INDEX_NAME))
    links = faiss.rev_swig_ptr(index.hnsw.neighbors.data(), index.hnsw.neighbors.size())
    links[np.flatnonzero(links >= 0)[5]] = 300
    faiss.write_index(index, str(folder / INDEX_NAME))
    assert f"{folder / INDEX_NAME} is not a FAISS index; build it again" in refusal(folder, capsys)


def test_without_checksums_the_index_of_others_is_found(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A compressed index has no vectors to compare, but it finds nothing."""
    folder = bare_source(tmp_path / "bare", "IVF4,SQ8", vectors(0, 3000))
    other = bare_source(tmp_path / "other", "IVF4,SQ8", vectors(1, 3000))
    shutil.copyfile(other / INDEX_NAME, folder / INDEX_NAME)
    assert "it belongs to others or is damaged" in refusal(folder, capsys)


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_without_checksums_a_vector_that_is_not_finite(
    tmp_path: Path, value: float, capsys: pytest.CaptureFixture[str]
) -> None:
    numbers = vectors()
    folder = bare_source(tmp_path / "bare", "Flat", numbers)
    path, row = shard(folder), numbers[211].tobytes()
    path.write_bytes(path.read_bytes().replace(row, np.float32(value).tobytes() + row[4:]))
    assert f"The vector in row 211 of {folder / PASSAGES_NAME} is not finite" in refusal(folder, capsys)


def test_without_checksums_text_that_is_not_utf8(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = bare_source(tmp_path / "bare", "Flat", vectors())
    path = shard(folder)
    path.write_bytes(path.read_bytes().replace(b"text 123", b"text \xff23"))
    message = refusal(folder, capsys)
    assert f"{folder / PASSAGES_NAME} is damaged in rows 0 to 299" in message
    assert "UTF8" in message


def test_a_shard_that_was_cut_off(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = bare_source(tmp_path / "bare", "Flat", vectors())
    path = shard(folder)
    path.write_bytes(path.read_bytes()[:-4000])
    assert f"{path} cannot be read" in refusal(folder, capsys)


def test_passages_without_text_are_counted(tmp_path: Path) -> None:
    folder = tmp_path / "bare"
    with PassageWriter(folder / PASSAGES_NAME, 8) as writer:
        writer.write(["a", "b"], ["", "text"], vectors(0, 2))
    assert PassageStore(folder / PASSAGES_NAME).check_texts() == 1


def test_a_sound_checkpoint(checkpoint: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["verify", str(checkpoint)]) == 0
    shown = capsys.readouterr().out
    assert f"{checkpoint} (rag_sequence)" in shown
    assert "all finite" in shown
    assert "1, safetensors" in shown
    assert "question encoder  tokenizer of 30 tokens, 30 embeddings" in shown
    assert shown.endswith("sound\n")


@pytest.mark.parametrize(("name", "model_type"), [("generator", "bart"), ("passage_encoder", "dpr")])
def test_the_parts_alone(models_folder: Path, name: str, model_type: str) -> None:
    report = verify(VerifySettings(models_folder / name))
    assert isinstance(report, CheckpointReport)
    assert report.model_type == model_type
    assert report.parameters == sum(t.numel() for t in load_file(models_folder / name / "model.safetensors").values())


def _truncate(folder: Path) -> None:
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-100])


def _not_finite(folder: Path) -> None:
    weights = load_file(folder / "model.safetensors")
    name = sorted(weights)[3]
    weights[name].view(-1)[0] = torch.inf
    save_file(weights, folder / "model.safetensors", {"format": "pt"})


def _lack_weights(folder: Path) -> None:
    weights = load_file(folder / "model.safetensors")
    del weights["rag.generator.model.decoder.layers.0.fc1.weight"]
    save_file(weights, folder / "model.safetensors", {"format": "pt"})


def _more_tokens(folder: Path) -> None:
    path = folder / "generator_tokenizer" / "tokenizer.json"
    tokenizer = json.loads(path.read_text())
    tokenizer["model"]["vocab"]["newcomer"] = 30
    path.write_text(json.dumps(tokenizer))


def _break_tokenizer(folder: Path) -> None:
    path = folder / "generator_tokenizer" / "tokenizer.json"
    path.write_text(path.read_text().replace('"normalized"', '"nobody"', 1))


def _remove_weights(folder: Path) -> None:
    (folder / "model.safetensors").unlink()


@pytest.mark.parametrize(
    ("damage", "told"),
    [
        (_truncate, "model.safetensors is damaged or cut off"),
        (_not_finite, "model.safetensors is damaged: "),
        (
            _lack_weights,
            "lacks 1 of the weights its architecture needs (rag.generator.model.decoder.layers.0.fc1.",
        ),
        (_more_tokens, "The tokenizer of the generator in"),
        (_break_tokenizer, "The generator tokenizer in"),
        (_remove_weights, "no weights (model.safetensors)"),
    ],
)
def test_a_damaged_checkpoint(
    checkpoint: Path, damage: Callable[[Path], None], told: str, capsys: pytest.CaptureFixture[str]
) -> None:
    damage(checkpoint)
    message = refusal(checkpoint, capsys)
    assert told in message
    assert str(checkpoint) in message


@pytest.mark.parametrize("kind", ["rag", "encoder"])
@pytest.mark.parametrize("pickled", [False, True])
def test_dense_modules(
    kind: str,
    pickled: bool,
    plain_bert_folder: Path,
    models_folder: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Behind a RAG checkpoint's question encoder, and behind an encoder alone."""
    encoder = load_encoder(str(plain_bert_folder), "question", pooling="mean")
    encoder.dense = nn.Sequential(Dense(nn.Linear(24, 8), nn.Tanh()))
    save_encoder(encoder, tmp_path / "encoder")
    if kind == "rag":
        join_models(models_folder / "generator", tmp_path / "encoder", tmp_path / "rag")
        capsys.readouterr()
    path = tmp_path / kind / ("2_Dense" if kind == "encoder" else "question_encoder_dense/0") / "model.safetensors"
    report = verify(VerifySettings(tmp_path / kind))
    assert isinstance(report, CheckpointReport)
    assert (report.files, report.safetensors) == (2, True)
    weights = load_file(path)
    weights["linear.weight"][0, 0] = torch.nan
    if pickled:
        path.unlink()
        path = path.with_name("pytorch_model.bin")
        torch.save(weights, path)
    else:
        save_file(weights, path)
    told = refusal(tmp_path / kind, capsys)
    assert f"{path} is damaged: linear.weight holds numbers that are not finite" in told


def test_shards(models_folder: Path, tmp_path: Path) -> None:
    """Weights in several files, as large models have them: each is checked, and each must be there."""
    folder = Path(shutil.copytree(models_folder / "generator", tmp_path / "generator"))
    weights = load_file(folder / "model.safetensors")
    names = sorted(weights)
    halves = {"a.safetensors": names[::2], "b.safetensors": names[1::2]}
    for file, part in halves.items():
        save_file({name: weights[name] for name in part}, folder / file, {"format": "pt"})
    weight_map = {name: file for file, part in halves.items() for name in part}
    index = {"metadata": {}, "weight_map": weight_map}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    (folder / "model.safetensors").unlink()
    report = verify(VerifySettings(folder))
    assert isinstance(report, CheckpointReport)
    assert (report.files, report.tensors) == (2, len(names))
    (folder / "b.safetensors").unlink()
    with pytest.raises(InputError, match=r"b.safetensors is missing, but model.safetensors.index.json lists it"):
        verify(VerifySettings(folder))


@pytest.mark.parametrize("zipped", [True, False])
def test_pickled_weights_are_told_apart(models_folder: Path, tmp_path: Path, zipped: bool) -> None:
    """In torch's file format, or in that of releases before 1.6."""
    folder = Path(shutil.copytree(models_folder / "generator", tmp_path / "generator"))
    weights = load_file(folder / "model.safetensors")
    torch.save(weights, folder / "pytorch_model.bin", _use_new_zipfile_serialization=zipped)
    (folder / "model.safetensors").unlink()
    report = verify(VerifySettings(folder))
    assert isinstance(report, CheckpointReport)
    assert not report.safetensors


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (Path("/"), "holds more than tensors and plain values, which is not unpickled"),
        ([torch.ones(1)], "it holds no tensors by name"),
        ({"step": 3}, "it holds no tensors by name"),
        (b"no file of torch's", "or is damaged"),
    ],
)
def test_pickles_of_something_else(
    models_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], content: Any, reason: str
) -> None:
    folder = Path(shutil.copytree(models_folder / "generator", tmp_path / "generator"))
    (folder / "model.safetensors").unlink()
    path = folder / "pytorch_model.bin"
    if isinstance(content, bytes):
        path.write_bytes(content)
    else:
        torch.save(content, path)
    told = refusal(folder, capsys)
    assert str(path) in told
    assert reason in told


def test_neither(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert "There is no folder" in refusal(tmp_path / "missing", capsys)
    assert "is neither a knowledge source" in refusal(tmp_path, capsys)
    assert main(["verify"]) == 2
    assert "--path must be given" in capsys.readouterr().err


def test_in_a_process_of_its_own(source: Path) -> None:
    flip(source / INDEX_NAME, -5)
    command = [sys.executable, "-m", "ragstone", "verify", str(source)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert done.stdout == ""
    assert done.stderr.startswith(f"ragstone verify: {source / INDEX_NAME} is damaged")
    assert done.stderr.count("\n") == 1
