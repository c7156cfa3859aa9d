"""ragstone download-knowledge against a small hub on loopback, and models that search what it brought."""

from __future__ import annotations

import hashlib
import json
import os
import shlex
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import faiss
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from ragstone.__main__ import main
from ragstone.commands.download_knowledge import GB, DownloadKnowledgeSettings, _say
from ragstone.encoders.fresh import fresh_encoder, train_tokenizer
from ragstone.encoders.load import save_encoder
from ragstone.encoders.record import EncoderRecord
from ragstone.errors import InputError
from ragstone.knowledge.hub_cache import HubCache, HubFile, HubListing
from ragstone.knowledge.source import KnowledgeSource
from ragstone.knowledge.wiki_dpr import find_wiki_dpr, index_file, passages_folder
from ragstone.settings import parse_settings
from tests.commands.conftest import refused
from tests.conftest import join_models
from tests.knowledge.hub import COMMIT, Hub
from tests.model.published import write_published

ROWS, DIMENSION = 300, 16
VECTORS = np.random.default_rng(0).standard_normal((ROWS, DIMENSION)).astype(np.float32)
FIRST_FILE, LAST_FILE = 10, ROWS - 10
QUESTION = "who founded the town ?"
# FAISS's own kinds of the published indexes, of a size that 300 vectors can train.
INDEXES = {"HNSW128_SQ8": "HNSW16_SQ8", "IVF4096_HNSW128_PQ128": "IVF4_HNSW8,PQ4x4"}
LARGE = 90_000
"""Characters of a passage of the last file but one: the client writes to disk in pieces of 10 MB."""


def wiki_dpr_layout(folder: Path, large: int = 10, embeddings: str = "nq") -> Path:
    """The files of facebook/wiki_dpr, small: passages in three files, both indexes, for one kind of embeddings."""
    data, index_folder = folder / "data" / "psgs_w100" / embeddings, folder / "index"
    data.mkdir(parents=True)
    index_folder.mkdir()
    letters = np.random.default_rng(1)
    bounds = (0, FIRST_FILE, LAST_FILE, ROWS)
    for number in range(3):
        rows = range(bounds[number], bounds[number + 1])
        length = large if number == 1 else 10
        table = {
            "id": [str(row + 1) for row in rows],
            "text": [f"the town {row} {letters.bytes(length // 2).hex()}" for row in rows],
            "title": [f"town {row}" for row in rows],
            "embeddings": pa.array(VECTORS[rows.start : rows.stop].tolist(), pa.list_(pa.float32())),
        }
        path = data / f"train-{number:05d}-of-00003.parquet"
        pq.write_table(pa.table(table), path, row_group_size=50, compression="none", use_dictionary=False)
    for name, factory in INDEXES.items():
        index = faiss.index_factory(DIMENSION, factory, faiss.METRIC_INNER_PRODUCT)
        index.train(VECTORS)
        index.add(VECTORS)
        faiss.write_index(index, str(index_folder / f"psgs_w100.{embeddings}.{name}-IP-train.faiss"))
    return folder


def download(hub: Hub | str, cache: Path, *flags: str) -> subprocess.CompletedProcess[str]:
    """Run the command line in a process of its own, which reaches the hub; answers come from nobody else."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("HF_")}
    environment |= {"HF_ENDPOINT": hub if isinstance(hub, str) else hub.url, "HF_HUB_CACHE": str(cache)}
    environment |= {"PYTHONPATH": str(Path(__file__).parents[2])}
    command = [sys.executable, "-m", "ragstone", "download-knowledge", "wiki_dpr", *flags]
    return subprocess.run(
        command, capture_output=True, text=True, env=environment, stdin=subprocess.DEVNULL, check=False
    )


def test_a_download_that_the_hub_leaves_goes_on(tmp_path: Path) -> None:
    layout, cache = wiki_dpr_layout(tmp_path / "hub", LARGE), tmp_path / "cache"
    large = "data/psgs_w100/nq/train-00001-of-00003.parquet"
    size = (layout / large).stat().st_size
    assert size > 24_000_000
    hub = Hub(layout, "facebook/wiki_dpr")
    asked = download(hub, cache)
    assert asked.returncode == 2 and hub.requests == []
    assert "facebook/wiki_dpr, 4 files of 0.0 GB" in asked.stderr
    assert "CC BY-NC 4.0, which forbids commercial use" in asked.stderr
    last = asked.stderr.splitlines()[-1]
    assert last.endswith("The licence has not been accepted; give --accept_license to accept it.")

    hub.dies_after = (large, 15_000_000)
    done = download(hub, cache, "--accept_license")
    assert (done.returncode, done.stdout) == (3, "")
    assert f"The hub has gone while {large} was coming" in done.stderr
    assert "run the same command again: it goes on where it stopped." in done.stderr
    assert not (cache / "datasets--facebook--wiki_dpr" / "refs").exists()

    # A part that is longer than the whole is of something else, and begins anew.
    first = layout / "data/psgs_w100/nq/train-00000-of-00003.parquet"
    name = hashlib.sha256(first.read_bytes()).hexdigest()
    blobs = cache / "datasets--facebook--wiki_dpr" / "blobs"
    (blobs / name).rename(blobs / f"{name}.ragstone.incomplete")
    with (blobs / f"{name}.ragstone.incomplete").open("ab") as part:
        part.write(b"more")

    again = Hub(layout, "facebook/wiki_dpr", hub.port)
    done = download(again, cache, "--accept_license", "--index", "compressed")
    assert done.returncode == 0, done.stderr
    assert "use it with  --index_name compressed" in done.stdout
    files = [(name, wanted) for method, name, wanted in again.requests if method == "GET"]
    assert files[0] == (str(first.relative_to(layout)), None)
    assert files[1] == (large, f"bytes={10 * 2**20}-")
    assert len(files) == 4 and again.sent < size - 10**7 + 10**6
    snapshot = cache / "datasets--facebook--wiki_dpr" / "snapshots" / COMMIT
    for path in (
        *layout.glob("data/**/*.parquet"),
        layout / "index" / "psgs_w100.nq.IVF4096_HNSW128_PQ128-IP-train.faiss",
    ):
        assert (snapshot / path.relative_to(layout)).read_bytes() == path.read_bytes()
    assert not list(cache.rglob("*.incomplete"))

    # What is there is checked, not fetched: what is damaged is, and is named.
    del again.requests[:]
    blob = (snapshot / large).resolve()
    damaged = bytearray(blob.read_bytes())
    damaged[10**7] ^= 1
    blob.write_bytes(damaged)
    done = download(again, cache, "--accept_license")
    assert done.returncode == 2
    assert f"{large} is damaged: it is not what the hub lists, and was removed" in done.stderr
    assert again.requests == [] and not blob.exists()
    again.close()


def test_the_size_is_said_in_gigabytes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Of all files, and of what is still to come where a file is there and another was begun."""
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    cache = HubCache("facebook/wiki_dpr")
    listing = HubListing("main", (HubFile("a", 39 * GB, "1"), HubFile("b", 38_260_000_000, "2"), HubFile("c", GB, "3")))
    _say(listing, cache)
    assert "3 files of 78.3 GB" in (said := capsys.readouterr().err) and "to come   78.3 GB, into" in said
    blobs = cache.folder / "blobs"
    blobs.mkdir(parents=True)
    # Files with a hole, which take no room.
    for name, size in (("3", GB), ("1.ragstone.incomplete", 9 * GB)):
        with (blobs / name).open("wb") as file:
            file.truncate(size)
    _say(listing, cache)
    assert "3 files of 78.3 GB" in (said := capsys.readouterr().err) and "to come   68.3 GB, into" in said


@pytest.mark.parametrize(("embeddings", "index"), [("nq", "exact"), ("multiset", "exact"), ("multiset", "compressed")])
def test_each_kind_of_embeddings_and_index_comes_from_the_hub(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, embeddings: str, index: str
) -> None:
    from huggingface_hub import constants

    layout, cache = wiki_dpr_layout(tmp_path / "hub", embeddings=embeddings), tmp_path / "cache"
    hub = Hub(layout, "facebook/wiki_dpr")
    done = download(hub, cache, "--accept_license", "--embeddings", embeddings, "--index", index)
    hub.close()
    assert done.returncode == 0, done.stderr
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(cache))
    passages, path = find_wiki_dpr(index, embeddings)
    assert [file.name for file in path.parent.iterdir()] == [Path(index_file(embeddings, index)).name]
    use = f"--index_name {index}" if embeddings == "nq" else f"--passages_path {passages} --index_path {path}"
    assert f"use it with  {use}\n" in done.stdout
    assert len(KnowledgeSource(passages, path)) == ROWS


@pytest.fixture
def cached(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """wiki_dpr where the hub's client keeps it."""
    from huggingface_hub import constants

    repository = tmp_path / "cache" / "datasets--facebook--wiki_dpr"
    wiki_dpr_layout(repository / "snapshots" / COMMIT)
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text(COMMIT, encoding="utf-8")
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    return repository / "snapshots" / COMMIT


@pytest.mark.parametrize(("name", "kind"), [("exact", faiss.IndexHNSWSQ), ("compressed", faiss.IndexIVFPQ)])
def test_what_was_downloaded_is_searched_by_name(
    cached: Path,
    checkpoint_folder: Path,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
    name: str,
    kind: type[Any],
) -> None:
    """Where it lies, with nothing written beside."""
    before = [(path, path.lstat().st_mtime_ns) for path in sorted(cached.parents[1].rglob("*"))]
    source = KnowledgeSource(*find_wiki_dpr(name))
    assert isinstance(faiss.downcast_index(source.index.faiss_index), kind)
    _, ids = source.index.search(VECTORS[:20], 5)
    assert (ids[:, 0] == np.arange(20)).mean() >= (0.9 if name == "exact" else 0.2)
    assert source.store.passages([150])[0].title == "town 150"
    flags = ["ask", f"--model_name_or_path={checkpoint_folder}", "--question", QUESTION, "--n_docs=3", "--json"]
    assert main([*flags, f"--index_name={name}"]) == 0
    passages = json.loads(capsys.readouterr().out)["passages"]
    assert [found["title"] for found in passages] == [f"town {found['id']}" for found in passages]
    assert len(passages) == 3
    assert [(path, path.lstat().st_mtime_ns) for path in sorted(cached.parents[1].rglob("*"))] == before


def test_an_index_of_an_earlier_commit_is_found_still(cached: Path) -> None:
    """Where another index was downloaded since, and the data set has changed on the hub."""
    passages, index = find_wiki_dpr("compressed")
    newer = cached.parent / "newer"
    shutil.copytree(cached, newer)
    next((newer / "index").glob("*IVF4096*")).unlink()
    (cached.parents[1] / "refs" / "main").write_text("newer", encoding="utf-8")
    assert find_wiki_dpr("exact")[1].is_relative_to(newer)
    assert find_wiki_dpr("compressed") == (passages, index)


def test_a_checkpoint_that_names_the_index_opens_without_flags_and_is_saved_so(
    cached: Path, checkpoint_folder: Path, tmp_path: Path
) -> None:
    """RagConfig's own default is the compressed index of wiki_dpr."""
    from ragstone.model.open import ModelRequest, open_model

    model = open_model(ModelRequest(str(checkpoint_folder), index_name="exact"))
    model.save(tmp_path / "rag")
    config = json.loads((tmp_path / "rag" / "config.json").read_text(encoding="utf-8"))
    assert (config["index_name"], config.get("passages_path"), config.get("index_path")) == ("exact", None, None)
    again = open_model(ModelRequest(str(tmp_path / "rag")))
    assert again.source_fingerprint() == model.source_fingerprint()
    compressed = open_model(ModelRequest(str(checkpoint_folder)))
    assert compressed.source_fingerprint() != model.source_fingerprint()


@pytest.mark.parametrize("embeddings", ["nq", "multiset"])
def test_a_question_encoder_of_another_passage_encoder_is_refused(tmp_path: Path, embeddings: str) -> None:
    """By name and kind, where nothing has the weights of the passage encoder; what cannot be told is taken."""
    layout = wiki_dpr_layout(tmp_path / "hub", embeddings=embeddings)
    source = KnowledgeSource(layout / passages_folder(embeddings), layout / index_file(embeddings, "exact")).info()
    names = {"nq": "single-nq-base", "multiset": "multiset-base"}
    own, other = names.pop(embeddings), names.popitem()[1]
    assert source.encoder == f"facebook/dpr-ctx_encoder-{own}"
    dpr, mean = {"pooling": "pooler", "normalize": False}, {"pooling": "mean", "normalize": False}

    def question(name: str, settings: dict[str, Any]) -> tuple[None, EncoderRecord]:
        return None, EncoderRecord("x", name, "w", settings)

    def passage(name: str, settings: dict[str, Any]) -> tuple[EncoderRecord, None]:
        return EncoderRecord("x", name, "w", settings), None

    for pair in (
        (None, None),
        question(f"facebook/dpr-question_encoder-{own}", dpr),
        passage(f"facebook/dpr-ctx_encoder-{own}", mean),
        question("my/bert", {"pooling": "cls", "normalize": False}),
        passage("my/copy", dpr),
    ):
        source.refuse_other_encoder(DIMENSION, pair[0], "a model", pair[1])
    for pair, reason in (
        (question(f"facebook/dpr-question_encoder-{other}", dpr), f"belongs to facebook/dpr-ctx_encoder-{other}"),
        (passage(f"facebook/dpr-ctx_encoder-{other}", dpr), f"belongs to facebook/dpr-ctx_encoder-{other}"),
        (passage("some/minilm", mean), "has vectors of the pooling 'mean', which DPR does not use"),
        (question("my/bert", {"pooling": "cls", "normalize": True}), "has vectors of length one"),
    ):
        with pytest.raises(InputError, match=f"but a model {reason}.*--passage_encoder_name_or_path {source.encoder}"):
            source.refuse_other_encoder(DIMENSION, pair[0], "a model", pair[1])


def test_a_sentence_transformers_model_does_not_search_wiki_dpr(
    cached: Path, models_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Though its vectors are as long; the published checkpoints' do (see the documentation's commands)."""
    save_encoder(
        fresh_encoder(train_tokenizer(["who founded the town"], 100), hidden_size=DIMENSION), tmp_path / "mean"
    )
    join_models(models_folder / "generator", tmp_path / "mean", tmp_path / "rag")
    flags = ["ask", f"--model_name_or_path={tmp_path / 'rag'}", "--question", QUESTION, "--index_name=exact"]
    message = refused(capsys, flags)
    assert "are those of facebook/dpr-ctx_encoder-single-nq-base, but" in message and "the pooling 'mean'" in message


def test_an_index_that_is_not_there(cached: Path, checkpoint_folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    next((cached / "index").glob("*HNSW128_SQ8*")).unlink()
    flags = ["ask", f"--model_name_or_path={checkpoint_folder}", "--question", QUESTION, "--index_name=exact"]
    message = refused(capsys, flags)
    assert "The index 'exact' of wiki_dpr is not in the hub's cache on this machine" in message
    assert "ragstone download-knowledge wiki_dpr --embeddings nq --index exact" in message


def test_a_hub_that_cannot_be_reached(capsys: pytest.CaptureFixture[str]) -> None:
    """Tests are offline."""
    assert main(["download-knowledge", "wiki_dpr", "--accept_license"]) == 3
    err = capsys.readouterr().err
    assert err.startswith("ragstone download-knowledge: The hub says nothing about facebook/wiki_dpr (")
    assert err.count("\n") == 1


def test_the_documentations_commands(
    cached: Path,
    tmp_path: Path,
    pairs_folder: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Every command of docs/use-wikipedia.md but the download, which is parsed; small models have the hub's names."""
    for name, model_type in (("rag-sequence-nq", "rag_sequence"), ("rag-token-nq", "rag_token")):
        write_published(tmp_path / "facebook" / name, model_type, "pickled", index_name="compressed")
    (tmp_path / "facebook" / "rag-token-base").symlink_to(tmp_path / "facebook" / "rag-token-nq")
    (tmp_path / "data").symlink_to(pairs_folder)
    (tmp_path / "nq-dev.questions").write_text("who founded the town?\nwhat is it?\n", encoding="utf-8")
    (tmp_path / "nq-dev.pages").write_text("town 1\ntown 2\n", encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    page = (Path(__file__).parents[2] / "docs" / "use-wikipedia.md").read_text(encoding="utf-8")
    commands = [shlex.split(line)[1:] for line in page.splitlines() if line.startswith("    ragstone ")]
    assert [words[0] for words in commands] == ["download-knowledge", "ask", "eval", "finetune", "ask"]
    settings = parse_settings(DownloadKnowledgeSettings, commands[0][1:], "ragstone", "")
    assert settings == DownloadKnowledgeSettings("wiki_dpr", "nq", "compressed", accept_license=True)
    for words in commands[1:]:
        capsys.readouterr()
        assert main(words) == 0, words
    out, err = capsys.readouterr()
    assert "A: " in out and "dummy source" in err
    best = json.loads((tmp_path / "run" / "best" / "config.json").read_text(encoding="utf-8"))
    assert (best["index_name"], best.get("passages_path")) == ("exact", None)
