"""The published models: checkpoints of their structure load, answer, train a step, and load back in transformers."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import RagRetriever

from ragstone.__main__ import main
from ragstone.index.vector_index import build_index
from ragstone.knowledge.source import INDEX_NAME, PASSAGES_NAME
from ragstone.knowledge.store import PassageStore, PassageWriter
from ragstone.model.checkpoint import load_checkpoint
from ragstone.model.decoding import Decoding
from ragstone.model.open import ModelRequest, open_model
from tests.conftest import DOCUMENTS, keep_as_downloaded
from tests.model.published import CLASSES, REAL, TINY, write_published

QUESTIONS = ["Who founded the Town?", "What is Otto's river ?"]
ANSWERS = ["otto", "the old river"]


def write_source(folder: Path, dimension: int) -> Path:
    """The documents of tests/conftest.py with random vectors."""
    vectors = np.random.default_rng(0).standard_normal((len(DOCUMENTS), dimension)).astype(np.float32)
    with PassageWriter(folder / PASSAGES_NAME, dimension) as writer:
        writer.write(*zip(*DOCUMENTS, strict=True), vectors)
    store = PassageStore(folder / PASSAGES_NAME)
    build_index(store.vector_chunks, len(store), dimension, "Flat", folder / INDEX_NAME)
    return folder


def retriever(folder: Path, source: Path) -> RagRetriever:
    return RagRetriever.from_pretrained(
        str(folder),
        index_name="custom",
        passages_path=str(source / PASSAGES_NAME),
        index_path=str(source / INDEX_NAME),
    )


@torch.no_grad()
def hold_together(ours: Any, theirs: Any, questions: list[str], folder: Path, source: Path) -> None:
    """Passages, contexts and loss of `ours` are those of transformers' model and retriever."""
    search = retriever(folder, source)
    theirs.config.n_docs = theirs.rag.config.n_docs = ours.n_docs
    inputs = ours.question_encoder.tokenize(questions)
    vectors = theirs.rag.question_encoder(**inputs)[0]
    torch.testing.assert_close(ours.question_encoder(**inputs), vectors, rtol=1e-5, atol=1e-6)
    expected = search(inputs["input_ids"], vectors.numpy(), n_docs=ours.n_docs, return_tensors="pt")
    evidence = ours.find(questions)
    assert evidence.ids.tolist() == expected["doc_ids"].tolist()
    scores = torch.einsum("bd,bnd->bn", vectors, torch.as_tensor(expected["retrieved_doc_embeds"]).float())
    torch.testing.assert_close(evidence.scores, scores, rtol=1e-4, atol=1e-4)
    context = ours.options.context
    asked = ours.question_encoder.read_back(questions) if context.decoded_question else questions
    ids = ours.generator.tokenizer(["".join(parts) for parts in context.texts(evidence.passages, asked)])["input_ids"]
    padded = [[*row, *[1] * (300 - len(row))] for row in ids]
    assert padded == expected["context_input_ids"].tolist()
    labels = ours.generator.tokenize_targets(ANSWERS, 25)
    labels = labels.masked_fill(labels < 0, 1)
    loss = theirs(
        context_input_ids=expected["context_input_ids"],
        context_attention_mask=expected["context_attention_mask"],
        doc_scores=scores,
        labels=torch.cat([torch.full((len(labels), 1), 2), labels], dim=1),
        reduce_loss=True,
        n_docs=ours.n_docs,
        return_dict=True,
    ).loss
    torch.testing.assert_close(ours(questions, ANSWERS).loss, loss, rtol=1e-4, atol=0)


def check_life_cycle(folder: Path, source: Path, theirs: Any, pairs: Path, out: Path, *flags: str) -> None:
    """Load, answer, evaluate, fine-tune for a step, save, and load back in transformers with equal answers."""
    model_type = "rag_token" if "Token" in type(theirs).__name__ else "rag_sequence"
    questions = ["who founded the town?", "what is a king?"]
    ours = open_model(ModelRequest(str(folder), passages_path=str(source), n_docs=2))
    assert (ours.model_type, ours.options.context.prefix, ours.options.context.decoded_question) == (
        model_type,
        " ",
        True,
    )
    hold_together(ours, theirs, questions, folder, source)
    ours.close()
    del ours, theirs
    common = [f"--passages_path={source}", "--n_docs=2"]
    evaluate = ["eval", f"--evaluation_set={pairs / 'test.source'}", f"--gold_data_path={pairs / 'test.target'}"]
    evaluate += ["--gold_data_mode=ans", f"--predictions_path={out / 'predictions.txt'}", "--max_length=4"]
    assert main([*evaluate, f"--model_name_or_path={folder}", *common]) == 0
    train = [
        "finetune",
        f"--data_dir={pairs}",
        f"--output_dir={out / 'run'}",
        f"--model_name_or_path={folder}",
        *common,
    ]
    train += ["--max_steps=1", "--train_batch_size=1", "--n_val=1", "--val_max_target_length=3", "--num_beams=1"]
    assert main([*train, "--gpus=0", *flags]) == 0
    best = out / "run" / "best"
    assert (best / "model.safetensors").is_file()
    trained, report = CLASSES[model_type].from_pretrained(best, output_loading_info=True)
    assert not report["missing_keys"] and not report["unexpected_keys"] and not report["mismatched_keys"]
    again = open_model(ModelRequest(str(best)))
    assert again.options.context.decoded_question
    hold_together(again, trained.eval(), questions, best, source)


@pytest.mark.parametrize("weights", ["pickled", "safetensors"])
def test_a_checkpoint_of_their_structure(tmp_path: Path, pairs_folder: Path, model_type: str, weights: Any) -> None:
    theirs = write_published(tmp_path / "rag", model_type, weights)
    source = write_source(tmp_path / "source", TINY.dpr["hidden_size"])
    check_life_cycle(tmp_path / "rag", source, theirs, pairs_folder, tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize(("weights", "model_type"), [("pickled", "rag_sequence"), ("safetensors", "rag_token")])
def test_a_checkpoint_of_their_structure_and_size(
    tmp_path: Path, pairs_folder: Path, model_type: str, weights: Any
) -> None:
    """516 million weights; Adafactor, so that 8 GB of memory are enough."""
    theirs = write_published(tmp_path / "rag", model_type, weights, REAL)
    assert sum(parameter.numel() for parameter in theirs.parameters()) > 510_000_000
    source = write_source(tmp_path / "source", 768)
    check_life_cycle(tmp_path / "rag", source, theirs, pairs_folder, tmp_path, "--adafactor")
    shutil.rmtree(tmp_path)


@pytest.mark.parametrize("kind", ["sequence", "token"])
@pytest.mark.parametrize("trained", ["base", "nq"])
def test_by_name_as_the_hubs_client_keeps_them(tmp_path: Path, kind: str, trained: str) -> None:
    """With the source that the config names: wiki_dpr is asked for, before any weights are read."""
    name = f"facebook/rag-{kind}-{trained}"
    write_published(tmp_path / "rag", f"rag_{kind}", "pickled")
    keep_as_downloaded(tmp_path / "rag", name, tmp_path / "cache")
    source = write_source(tmp_path / "source", 16)
    model = open_model(ModelRequest(name, passages_path=str(source), cache_dir=str(tmp_path / "cache")))
    assert model.model_type == f"rag_{kind}"
    assert model.generate(QUESTIONS, Decoding(max_length=4))
    (tmp_path / "rag" / "pytorch_model.bin").unlink()
    with pytest.raises(Exception, match="ragstone download-knowledge wiki_dpr --embeddings nq --index exact"):
        open_model(ModelRequest(str(tmp_path / "rag")))


def test_they_read_the_question_as_they_were_trained_to(tmp_path: Path, checkpoint_folder: Path) -> None:
    """Lower case, without the blanks that the tokenizer puts in; Ragstone's own read it as it was asked."""
    write_published(tmp_path / "rag", "rag_sequence", "pickled")
    source = write_source(tmp_path / "source", 16)
    model = open_model(ModelRequest(str(tmp_path / "rag"), passages_path=str(source)))
    read: list[str] = []
    encode = model.generator.encode
    model.generator.encode = lambda contexts, length: read.extend(map("".join, contexts)) or encode(contexts, length)
    model.generate(QUESTIONS, Decoding(1, max_length=4), n_docs=1)
    model(QUESTIONS[:1], ["otto"])
    asked = [text.split(" // ")[1] for text in read]
    assert asked[:2] == ["who founded the town?", "what is otto's river?"]
    assert set(asked[2:]) == {"who founded the town?"}
    assert all(text.startswith(" ") for text in read)
    model.save(tmp_path / "saved")
    recorded = json.loads((tmp_path / "saved" / "config.json").read_text(encoding="utf-8"))["ragstone"]
    assert recorded["decoded_question"] is True
    assert load_checkpoint(str(tmp_path / "saved")).context == model.options.context
    assert not load_checkpoint(str(checkpoint_folder)).context.decoded_question
