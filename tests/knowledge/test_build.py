from __future__ import annotations

import copy
import json
import os
import subprocess
import sys
from pathlib import Path

import faiss
import numpy as np
import pytest
from pyarrow import csv as pa_csv
from pyarrow import parquet
from transformers import DPRConfig, DPRContextEncoder, PreTrainedTokenizerFast

from ragstone.encoders.fresh import fresh_encoder, train_tokenizer
from ragstone.encoders.text_encoder import TextEncoder
from ragstone.errors import InputError
from ragstone.index.exact import exact_search
from ragstone.index.vector_index import build_index
from ragstone.knowledge import build
from ragstone.knowledge.build import BuildPlan, build_knowledge_source
from ragstone.knowledge.manifest import Manifest, checksum
from ragstone.knowledge.source import INDEX_NAME, PASSAGES_NAME, KnowledgeSource
from ragstone.knowledge.store import PassageStore, PassageWriter

WORDS = np.array([a + b + c for a in "bdfgk" for b in "aeiou" for c in ("l", "n", "rt", "st")])


def write_documents(path: Path, count: int, words: int = 30) -> Path:
    """`count` invented documents of up to `words` words."""
    rng = np.random.default_rng(0)
    with path.open("w", encoding="utf-8") as file:
        for i in range(count):
            file.write(f"title {i}\t{' '.join(rng.choice(WORDS, rng.integers(1, words)))}\n")
    return path


@pytest.fixture(scope="module")
def encoder() -> TextEncoder:
    return fresh_encoder(train_tokenizer(WORDS.tolist(), 200), hidden_size=32)


def build_in(folder: Path, documents: Path, encoder: TextEncoder, plan: BuildPlan) -> KnowledgeSource:
    folder.mkdir()
    build_knowledge_source([documents], encoder, folder, plan)
    return KnowledgeSource(folder)


def test_passages_and_vectors_are_the_documents(
    tmp_path: Path, encoder: TextEncoder, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Several groups, and passages of very different length within each.
    monkeypatch.setattr(build, "PASSAGES_AT_ONCE", 16)
    documents = write_documents(tmp_path / "a.tsv", 50)
    source = build_in(tmp_path / "source", documents, encoder, BuildPlan("flat", max_words=10, precision="fp32"))
    expected = []
    for line in documents.read_text(encoding="utf-8").splitlines():
        title, text = line.split("\t")
        words = text.split(" ")
        expected += [(title, " ".join(words[start : start + 10])) for start in range(0, len(words), 10)]
    passages = source.store.passages(np.arange(len(source)))
    assert [(passage.title, passage.text) for passage in passages] == expected
    alone = np.concatenate([encoder.embed([text], [title]) for title, text in expected])
    np.testing.assert_allclose(source.store.vectors(np.arange(len(source))), alone, rtol=1e-3, atol=1e-4)


def test_the_manifest_says_what_was_built(tmp_path: Path, encoder: TextEncoder) -> None:
    documents = write_documents(tmp_path / "a.tsv", 40)
    source = build_in(tmp_path / "source", documents, encoder, BuildPlan("hnsw", m=64, max_words=10))
    manifest = Manifest.load(tmp_path / "source")
    assert manifest is not None
    assert (manifest.documents, manifest.passages, manifest.dimension) == (40, len(source), 32)
    assert (manifest.index, manifest.metric, manifest.max_words) == ("HNSW64,Flat", "inner_product", 10)
    assert manifest.encoder_fingerprint == encoder.fingerprint()
    paths = [path for path in (tmp_path / "source").rglob("*") if path.is_file() and path.name != "knowledge.json"]
    assert manifest.files == {str(path.relative_to(tmp_path / "source")): checksum(path) for path in paths}
    statistics = manifest.statistics
    assert statistics["bytes"] == sum(path.stat().st_size for path in paths)
    assert statistics["seconds"] >= statistics["seconds_embedding"] > 0
    assert 0.9 <= statistics["recall@5"] <= 1
    assert 0.9 <= statistics["recall@20"] <= 1
    assert statistics["queries_per_second"] > 0


def test_an_index_that_finds_little_is_told_truthfully(tmp_path: Path) -> None:
    """One that looks into one of fifty lists of random vectors; its recall is counted here by hand."""
    rng = np.random.default_rng(0)
    vectors = rng.standard_normal((2000, 16)).astype(np.float32)
    with PassageWriter(tmp_path / PASSAGES_NAME, 16) as writer:
        writer.write(["title"] * 2000, ["text"] * 2000, vectors)
    index = faiss.index_factory(16, "IVF50,Flat", faiss.METRIC_INNER_PRODUCT)
    index.train(vectors)
    index.add(vectors)
    faiss.write_index(index, str(tmp_path / INDEX_NAME))
    measured = build.measure_index(KnowledgeSource(tmp_path))
    queries = vectors[np.linspace(0, 1999, 256).astype(np.int64)]
    _, found = index.search(queries, 20)
    best = np.argsort(-(queries @ vectors.T), axis=1)
    for depth in (5, 20):
        hits = [len({*row[:depth]} & {*nearest[:depth]}) for row, nearest in zip(found, best, strict=True)]
        assert measured[f"recall@{depth}"] == pytest.approx(np.mean(hits) / depth, abs=1e-3)
    assert 0 < measured["recall@20"] < 0.5


def test_twins_do_not_lower_a_flat_index_recall(tmp_path: Path, encoder: TextEncoder) -> None:
    (tmp_path / "a.tsv").write_text("".join(f"same\t{WORDS[i % 3]}\n" for i in range(90)), encoding="utf-8")
    build_in(tmp_path / "source", tmp_path / "a.tsv", encoder, BuildPlan("flat"))
    manifest = Manifest.load(tmp_path / "source")
    assert manifest is not None
    assert (manifest.statistics["recall@5"], manifest.statistics["recall@20"]) == (1, 1)


def test_bfloat16_vectors_rank_as_fp32_ones(tmp_path: Path, encoder: TextEncoder) -> None:
    documents = write_documents(tmp_path / "a.tsv", 200)
    sources = {
        precision: build_in(tmp_path / precision, documents, encoder, BuildPlan("flat", precision=precision))
        for precision in ("fp32", "bf16")
    }
    full, half = (source.store.vectors(np.arange(200)) for source in sources.values())
    assert full.dtype == half.dtype == np.float32
    cosines = (full * half).sum(axis=1) / np.linalg.norm(full, axis=1) / np.linalg.norm(half, axis=1)
    assert cosines.min() > 0.9995
    queries = full[::4]
    _, exact = exact_search([full], queries, 5)
    _, found = exact_search([half], queries, 5)
    assert np.mean([len(set(a) & set(b)) / 5 for a, b in zip(exact, found, strict=True)]) > 0.95
    # The encoder itself keeps its weights.
    np.testing.assert_array_equal(encoder.embed([WORDS[0]]), encoder.embed([WORDS[0]], precision="fp32"))
    assert {parameter.dtype for parameter in encoder.parameters()} == {next(encoder.parameters()).float().dtype}


def test_bad_documents_are_refused_before_anything_is_embedded(
    tmp_path: Path, encoder: TextEncoder, monkeypatch: pytest.MonkeyPatch
) -> None:
    documents = write_documents(tmp_path / "a.tsv", 50)
    with documents.open("a", encoding="utf-8") as file:
        file.write("no tab\n")
    monkeypatch.setattr(build, "PASSAGES_AT_ONCE", 16)
    (tmp_path / "source").mkdir()
    with pytest.raises(InputError, match=r"a\.tsv, line 51"):
        build_knowledge_source([documents], encoder, tmp_path / "source", BuildPlan())
    assert not any((tmp_path / "source").iterdir())


def test_documents_without_text(tmp_path: Path, encoder: TextEncoder) -> None:
    (tmp_path / "a.tsv").write_text("title\t\nanother\t  \n", encoding="utf-8")
    with pytest.raises(InputError, match=r"There is no text in .*a\.tsv"):
        build_knowledge_source([tmp_path / "a.tsv"], encoder, tmp_path, BuildPlan())


def test_vectors_that_are_not_finite_are_refused(tmp_path: Path, encoder: TextEncoder) -> None:
    broken = copy.deepcopy(encoder)
    next(broken.parameters()).data.fill_(float("nan"))
    (tmp_path / "source").mkdir()
    with pytest.raises(InputError, match="gave vectors that are not finite"):
        build_knowledge_source([write_documents(tmp_path / "a.tsv", 5)], broken, tmp_path / "source", BuildPlan())


def measured(program: str, *arguments: object) -> int:
    """Bytes that `program` prints, run in a process of its own."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"}
    command = [sys.executable, "-c", program, *map(str, arguments)]
    return int(subprocess.run(command, env=environment, capture_output=True, text=True, check=True).stdout)


NOISE = 25e6
"""Bytes by which the same build's memory differs from run to run, at most: what allocators keep."""

# Memory of its own, at its highest: pages of mapped files are the system's to take back whenever it needs them.
BUILD = """
import sys, threading
from pathlib import Path
import psutil
from ragstone.encoders.load import load_encoder
from ragstone.index.vector_index import build_index
from ragstone.knowledge import build
encoder = load_encoder(sys.argv[1], "passage")
build.PASSAGES_AT_ONCE = 256
folder = Path(sys.argv[3])
folder.mkdir()
process, done, peak = psutil.Process(), threading.Event(), 0
def watch():
    global peak
    while not done.wait(0.005):
        memory = process.memory_info()
        peak = max(peak, memory.rss - memory.shared)
watcher = threading.Thread(target=watch)
watcher.start()
build.build_knowledge_source([Path(sys.argv[2])], encoder, folder, build.BuildPlan(sys.argv[4], precision="fp32"))
done.set()
watcher.join()
print(peak)
"""


def documents_as(suffix: str, documents: Path) -> Path:
    """Tab-separated documents in another format."""
    table = pa_csv.read_csv(
        documents,
        read_options=pa_csv.ReadOptions(column_names=["title", "text"]),
        parse_options=pa_csv.ParseOptions(delimiter="\t"),
    )
    path = documents.with_suffix(suffix)
    if suffix == ".csv":
        pa_csv.write_csv(table, path)
    elif suffix == ".jsonl":
        path.write_text("".join(json.dumps(row) + "\n" for row in table.to_pylist()), encoding="utf-8")
    elif suffix == ".parquet":
        parquet.write_table(table, path, row_group_size=1000)
    return path


@pytest.mark.slow
@pytest.mark.parametrize(
    ("suffix", "index", "held"),
    [
        *((suffix, "flat", 0) for suffix in (".tsv", ".csv", ".jsonl", ".parquet")),
        # FAISS holds a graph with its vectors while it is built, once.
        (".tsv", "hnsw", 1.1),
    ],
)
def test_memory_stays_flat_while_the_corpus_grows(
    tmp_path: Path, question_tokenizer: PreTrainedTokenizerFast, suffix: str, index: str, held: float
) -> None:
    # Little to compute, long vectors.
    config = DPRConfig(
        vocab_size=len(question_tokenizer),
        hidden_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=32,
        max_position_embeddings=64,
        projection_dim=2048,
    )
    DPRContextEncoder(config).save_pretrained(tmp_path / "encoder")
    question_tokenizer.save_pretrained(tmp_path / "encoder")
    peaks, sizes = [], []
    for count in (2500, 10_000):
        documents = documents_as(suffix, write_documents(tmp_path / f"{count}.tsv", count, words=6))
        folder = tmp_path / f"source{count}"
        peaks.append(measured(BUILD, tmp_path / "encoder", documents, folder, index))
        sizes.append((folder / INDEX_NAME).stat().st_size)
    grown = sizes[1] - sizes[0]
    # The index alone grows by 60 MB, and the vectors beside the passages by as much.
    assert grown > 60e6
    assert peaks[1] - peaks[0] < held * grown + NOISE


OPEN = """
import sys
from pathlib import Path
import datasets, faiss, psutil, pyarrow
from ragstone.knowledge.source import KnowledgeSource
KnowledgeSource(Path(sys.argv[1]))
def own():
    memory = psutil.Process().memory_info()
    return memory.rss - memory.shared
before = own()
source = KnowledgeSource(Path(sys.argv[2]))
print(own() - before)
"""


@pytest.mark.parametrize("factory", ["Flat", "HNSW128,Flat", "IVF16,SQ8", "IVF16,PQ64"])
def test_opening_adds_less_memory_than_a_tenth_of_the_size(tmp_path: Path, source_folder: Path, factory: str) -> None:
    """Of its own: FAISS looks at the links of an HNSW graph in the map, whose pages the system takes back."""
    count, dimension = (7_000, 1024) if factory.startswith("HNSW") else (12_000, 768)
    rng = np.random.default_rng(0)
    with PassageWriter(tmp_path / PASSAGES_NAME, dimension) as writer:
        for start in range(0, count, 1000):
            vectors = rng.standard_normal((1000, dimension), dtype=np.float32)
            writer.write([f"title {start + i}" for i in range(1000)], ["a passage " * 100] * 1000, vectors)
    store = PassageStore(tmp_path / PASSAGES_NAME)
    build_index(store.vector_chunks, count, dimension, factory, tmp_path / INDEX_NAME)
    size = sum(path.stat().st_size for path in tmp_path.rglob("*") if path.is_file())
    # The first source that is opened, a tiny one, pays for what the libraries load once.
    added = measured(OPEN, source_folder, tmp_path)
    assert size >= 50e6
    assert added < size / 10
