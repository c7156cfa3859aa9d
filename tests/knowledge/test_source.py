from __future__ import annotations

import json
import shutil
from pathlib import Path

import datasets
import faiss
import numpy as np
import pytest
from transformers import PreTrainedTokenizerFast, RagConfig, RagRetriever

from ragstone.encoders.record import EncoderRecord
from ragstone.errors import InputError
from ragstone.index.vector_index import build_index
from ragstone.knowledge.source import INDEX_NAME, PASSAGES_NAME, KnowledgeSource
from ragstone.knowledge.store import PassageWriter
from ragstone.retrieval.local import LocalRetriever

QUERIES = np.random.default_rng(0).standard_normal((4, 16)).astype(np.float32)


def reference_source(folder: Path, vectors: np.ndarray) -> Path:
    """A source made step by step as use_own_knowledge_dataset.py makes it: map, save_to_disk, HNSW index, save."""
    count, dimension = vectors.shape
    columns = {"title": [f"title {i}" for i in range(count)], "text": [f"text {i}" for i in range(count)]}
    features = datasets.Features(
        text=datasets.Value("string"),
        title=datasets.Value("string"),
        embeddings=datasets.List(datasets.Value("float32")),
    )
    dataset = datasets.Dataset.from_dict(columns).map(
        lambda _, rows: {"embeddings": vectors[rows]}, with_indices=True, batched=True, batch_size=16, features=features
    )
    dataset.save_to_disk(folder / PASSAGES_NAME)
    dataset.add_faiss_index("embeddings", custom_index=faiss.IndexHNSWFlat(dimension, 128, faiss.METRIC_INNER_PRODUCT))
    dataset.get_index("embeddings").save(str(folder / INDEX_NAME))
    return folder


def rag_retriever(folder: Path, tokenizer: PreTrainedTokenizerFast, dimension: int) -> RagRetriever:
    config = RagConfig(
        index_name="custom",
        passages_path=str(folder / PASSAGES_NAME),
        index_path=str(folder / INDEX_NAME),
        retrieval_vector_size=dimension,
        n_docs=3,
        question_encoder={"model_type": "dpr"},
        generator={"model_type": "bart"},
    )
    return RagRetriever(config, question_encoder_tokenizer=tokenizer, generator_tokenizer=tokenizer)


def assert_equal_results(folder: Path, tokenizer: PreTrainedTokenizerFast, queries: np.ndarray, n_docs: int) -> None:
    vectors, ids, documents = rag_retriever(folder, tokenizer, queries.shape[1]).retrieve(queries, n_docs)
    found = LocalRetriever(KnowledgeSource(folder)).retrieve(queries, n_docs)
    np.testing.assert_array_equal(found.ids, ids)
    np.testing.assert_array_equal(found.vectors, vectors)
    for passages, theirs in zip(found.passages, documents, strict=True):
        assert [passage.text for passage in passages] == list(theirs["text"])
        assert [passage.title for passage in passages] == list(theirs["title"])


def test_transformers_finds_the_same_in_our_source(
    source_folder: Path, question_tokenizer: PreTrainedTokenizerFast
) -> None:
    assert_equal_results(source_folder, question_tokenizer, QUERIES, 3)


@pytest.mark.parametrize("factory", ["HNSW16,Flat", "IVF4,Flat"])
def test_transformers_finds_the_same_with_an_index_that_is_not_flat(
    factory: str, tmp_path: Path, question_tokenizer: PreTrainedTokenizerFast
) -> None:
    vectors = np.random.default_rng(1).standard_normal((200, 16)).astype(np.float32)
    with PassageWriter(tmp_path / PASSAGES_NAME, 16) as writer:
        writer.write([f"title {i}" for i in range(200)], [f"text {i}" for i in range(200)], vectors)
    build_index(lambda: iter([vectors]), 200, 16, factory, tmp_path / INDEX_NAME)
    assert_equal_results(tmp_path, question_tokenizer, QUERIES, 5)


def test_a_source_of_the_reference_opens(tmp_path: Path, question_tokenizer: PreTrainedTokenizerFast) -> None:
    vectors = np.random.default_rng(1).standard_normal((50, 16)).astype(np.float32)
    folder = reference_source(tmp_path, vectors)
    source = KnowledgeSource(folder)
    assert (len(source), source.dimension, source.manifest) == (50, 16, None)
    np.testing.assert_array_equal(source.store.vectors(np.arange(50)), vectors)
    assert_equal_results(folder, question_tokenizer, QUERIES, 5)


def test_it_opens_by_either_folder_and_with_an_index_elsewhere(source_folder: Path, tmp_path: Path) -> None:
    assert KnowledgeSource(source_folder).store.folder == KnowledgeSource(source_folder / PASSAGES_NAME).store.folder
    shutil.copy(source_folder / INDEX_NAME, tmp_path / "index")
    (tmp_path / "alone").mkdir()
    shutil.copytree(source_folder / PASSAGES_NAME, tmp_path / "alone" / "passages")
    source = KnowledgeSource(tmp_path / "alone" / "passages", tmp_path / "index")
    assert (len(source), source.manifest) == (6, None)


def test_folders_that_are_no_source(source_folder: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="There is no knowledge source"):
        KnowledgeSource(tmp_path / "nowhere")
    with pytest.raises(InputError, match="is not a knowledge source"):
        KnowledgeSource(tmp_path)
    shutil.copytree(source_folder / PASSAGES_NAME, tmp_path / PASSAGES_NAME)
    with pytest.raises(InputError, match="There is no index file"):
        KnowledgeSource(tmp_path)


@pytest.mark.parametrize(
    ("shape", "message"),
    [((5, 16), "holds 5 vectors, but .* has 6 passages"), ((6, 8), "has 8 dimensions, but the vectors in .* have 16")],
)
def test_an_index_of_other_passages_is_refused(
    source_folder: Path, tmp_path: Path, shape: tuple[int, int], message: str
) -> None:
    build_index(lambda: iter([np.ones(shape, np.float32)]), *shape, "Flat", tmp_path / "index")
    with pytest.raises(InputError, match=message):
        KnowledgeSource(source_folder, tmp_path / "index")


def test_an_encoder_that_did_not_build_it_is_refused(source_folder: Path) -> None:
    source = KnowledgeSource(source_folder).info()
    assert source.encoder_fingerprint
    source.refuse_other_encoder(16, EncoderRecord(source.encoder_fingerprint), "a model")
    source.refuse_other_encoder(16, None, "a model")
    with pytest.raises(InputError, match=r"a model makes question vectors of 8 dimensions, but .* has 16"):
        source.refuse_other_encoder(8, None, "a model")
    with pytest.raises(InputError, match=r"was built with the passage encoder .*passage_encoder .*fingerprint other"):
        source.refuse_other_encoder(16, EncoderRecord("other"), "a model")


def test_a_damaged_manifest_is_named(source_folder: Path, tmp_path: Path) -> None:
    folder = tmp_path / "source"
    shutil.copytree(source_folder, folder)
    (folder / "knowledge.json").write_text(json.dumps({"encoder": "x"}), encoding="utf-8")
    with pytest.raises(InputError, match=r"knowledge\.json is damaged"):
        KnowledgeSource(folder)
