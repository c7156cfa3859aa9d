"""Dense modules of sentence-transformers' folders, held against sentence-transformers; kept in RAG checkpoints."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer.modules import Dense, Normalize, Pooling, Transformer

from ragstone.encoders.load import load_encoder, save_encoder
from ragstone.encoders.pair import load_pair
from ragstone.errors import InputError
from ragstone.model.lora import LoraSettings
from ragstone.model.open import ModelRequest, open_model
from tests.conftest import build_source, join_models

TEXTS = ["who founded the town ?", "the old river by the hill", "red", "a bridge of stone " * 30]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, plain_bert_folder: Path) -> Path:
    """As sentence-transformers saves it: 24 dimensions become 12, then 10, of length one."""
    torch.manual_seed(0)
    body = Transformer(str(plain_bert_folder), max_seq_length=36)
    layers = [Dense(24, 12), Dense(12, 10, bias=False, activation_function=torch.nn.Identity())]
    pooling = Pooling(24, pooling_mode="mean")
    path = tmp_path_factory.mktemp("dense") / "model"
    SentenceTransformer(modules=[body, pooling, *layers, Normalize()], device="cpu").save(str(path))
    return path


def test_vectors_are_sentence_transformers(folder: Path, tmp_path: Path) -> None:
    ours = load_encoder(str(folder), "passage")
    assert ours.dimension == 10
    expected = SentenceTransformer(str(folder), device="cpu").encode(TEXTS)
    np.testing.assert_allclose(ours.embed(TEXTS, batch_size=2), expected, atol=1e-5)
    save_encoder(ours, tmp_path)
    np.testing.assert_allclose(SentenceTransformer(str(tmp_path), device="cpu").encode(TEXTS), expected, atol=1e-5)
    again = load_encoder(str(tmp_path), "passage")
    assert again.fingerprint() == ours.fingerprint()
    pair = load_pair(str(folder), str(folder), shared=True)
    assert pair.passage.dense is pair.question.dense, "trained once"
    with torch.no_grad():
        again.dense[1].linear.weight[0, 0] += 1  # type: ignore[index, union-attr]
    assert again.fingerprint() != ours.fingerprint()


def test_weights_as_they_were_pickled(folder: Path, tmp_path: Path) -> None:
    """Only as weights: a pickle that holds more is refused."""
    save_encoder(load_encoder(str(folder), "passage"), tmp_path)
    path = tmp_path / "2_Dense" / "model.safetensors"
    weights = load_file(path)
    path.unlink()
    torch.save(weights, path.with_name("pytorch_model.bin"))
    ours = load_encoder(str(tmp_path), "passage")
    assert ours.embed(TEXTS).tolist() == load_encoder(str(folder), "passage").embed(TEXTS).tolist()
    torch.save({**weights, "more": Path("x")}, path.with_name("pytorch_model.bin"))
    with pytest.raises(InputError, match="the weights in 2_Dense cannot be read"):
        load_encoder(str(tmp_path), "passage")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"activation_function": "os.system"},
            "has the activation 'os.system', but Ragstone knows only Identity, Tanh",
        ),
        ({"use_residual": True}, r"adds its input to its output \(use_residual\)"),
        ({"module_input_name": "token_embeddings"}, "changes 'token_embeddings' and not the pooled vector"),
        ({"in_features": 23}, "2_Dense do not fit its config.json"),
        ({"out_features": None}, "names no in_features and out_features"),
    ],
)
def test_what_cannot_be_applied(folder: Path, tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    save_encoder(load_encoder(str(folder), "passage"), tmp_path)
    path = tmp_path / "2_Dense" / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text(encoding="utf-8")), **changes}), encoding="utf-8")
    with pytest.raises(InputError, match=message):
        load_encoder(str(tmp_path), "passage")


def test_an_order_that_cannot_be_applied(folder: Path, tmp_path: Path) -> None:
    save_encoder(load_encoder(str(folder), "passage"), tmp_path)
    path = tmp_path / "modules.json"
    modules = json.loads(path.read_text(encoding="utf-8"))
    path.write_text(json.dumps([*modules[:2], modules[4], *modules[2:4]]), encoding="utf-8")
    with pytest.raises(InputError, match="normalises before a Dense module"):
        load_encoder(str(tmp_path), "passage")


def test_a_checkpoint_keeps_and_trains_them(
    folder: Path, models_folder: Path, documents_file: Path, tmp_path: Path
) -> None:
    """Whole and beside adapters; a source that the same model built belongs to it."""
    source = build_source(documents_file, tmp_path / "source", folder)
    join_models(models_folder / "generator", folder, tmp_path / "rag")
    request = ModelRequest(str(tmp_path / "rag"), passages_path=str(source), n_docs=2)
    expected = load_encoder(str(folder), "question").embed(TEXTS)
    for lora in (None, LoraSettings(r=2, alpha=4)):
        rag: Any = open_model(dataclasses.replace(request, lora=lora))
        np.testing.assert_array_equal(rag.question_encoder.embed(TEXTS), expected)
        rag(["who founded the town ?"], ["otto"]).loss.backward()
        weight = rag.question_encoder.dense[0].linear.weight
        assert weight.grad.abs().max() > 0
        with torch.no_grad():
            weight -= 10 * weight.grad
        saved = tmp_path / f"saved{lora is None}"
        saved.mkdir()
        rag.save(saved)
        again: Any = open_model(ModelRequest(str(saved)))
        assert again.fingerprint() == rag.fingerprint()
        assert again.question_encoder.embed(TEXTS).tolist() == rag.question_encoder.eval().embed(TEXTS).tolist()
        assert again.question_encoder.embed(TEXTS).tolist() != expected.tolist()
    assert open_model(dataclasses.replace(request, passages_path=None, use_dummy_dataset=True)).retrieve(TEXTS[:1])
