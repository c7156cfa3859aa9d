"""RAG checkpoints of every family of decoder-only generators, whole and as adapters: read with equal scores."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from transformers import RagConfig

from ragstone.errors import InputError
from ragstone.model.checkpoint import Checkpoint, load_checkpoint, save_checkpoint
from ragstone.model.consolidate import ConsolidateParts, join_parts, merge_checkpoint
from ragstone.model.lora import LoraSettings, add_adapters, load_adapters, merge_adapters
from ragstone.model.open import ModelRequest, open_model
from tests.model.test_causal import CONTEXTS, FAMILIES, make, targets

QUESTIONS, ANSWERS = ["a b c ?", "b ?"], ["c a", "b"]


@pytest.fixture(scope="module")
def encoder(models_folder: Path) -> Any:
    """The question encoder of any checkpoint."""
    return join_parts(
        ConsolidateParts(str(models_folder / "question_encoder"), str(models_folder / "generator"))
    ).question_encoder


@torch.no_grad()
def scores(generator: Any) -> torch.Tensor:
    generator.model.eval()
    return generator.target_logits(generator.encode(CONTEXTS, 64), targets())


def write(family: str, encoder: Any, folder: Path) -> Any:
    """A RAG checkpoint with that family's tiny model in `folder`; returns the generator."""
    generator = whole(family)
    config = RagConfig.from_question_encoder_generator_configs(encoder.model.config, generator.model.config)
    save_checkpoint(Checkpoint(config, encoder, generator), folder, "rag_token")
    return generator


def whole(family: str) -> Any:
    generator = make(family)
    generator.model.float()
    # As in a config that was saved with the model.
    generator.model.config.architectures = [type(generator.model).__name__]
    return generator


@pytest.mark.parametrize("family", FAMILIES)
def test_there_and_back(family: str, encoder: Any, tmp_path: Path) -> None:
    written = write(family, encoder, tmp_path / "rag")
    read: Any = load_checkpoint(str(tmp_path / "rag")).generator
    assert type(read.model) is type(written.model)
    torch.testing.assert_close(scores(read), scores(written), rtol=1e-5, atol=1e-5)


def test_contexts_leave_room_for_the_longest_answer(encoder: Any, source_folder: Path, tmp_path: Path) -> None:
    """Prompt and answer share a decoder-only generator's positions: known when it is opened, not at a long prompt."""
    write("GPT-2", encoder, tmp_path / "rag")
    name, source = str(tmp_path / "rag"), str(source_folder)
    for answers, length in ({}, 48), ({"longest_answer": 30}, 34), ({"max_target_length": 25}, 39):
        model: Any = open_model(ModelRequest(name, passages_path=source, **answers))
        assert model.options.context.max_length == length
    request = ModelRequest(name, passages_path=source, max_combined_length=40, longest_answer=30)
    with pytest.raises(InputError, match=r"max_combined_length is 40, .* for 34 tokens, beside answers of 30"):
        open_model(request)


@pytest.mark.parametrize("family", FAMILIES)
def test_adapters(family: str, tmp_path: Path) -> None:
    """Beside the layers, saved alone, put beside them again, and merged into them."""
    plain, generator = scores(whole(family)), whole(family)
    generator.model = add_adapters(generator.model, LoraSettings(r=2, alpha=4))
    with torch.no_grad():
        for name, parameter in generator.model.named_parameters():
            assert parameter.requires_grad == ("lora_" in name)
            if "lora_B" in name:
                parameter.normal_(std=0.3)
    adapted = scores(generator)
    assert (adapted - plain).abs().mean() > 1e-2
    generator.model.save_pretrained(tmp_path)
    again = whole(family)
    again.model = load_adapters(again.model, tmp_path)
    torch.testing.assert_close(scores(again), adapted, rtol=1e-5, atol=1e-5)
    again.model = merge_adapters(again.model)
    assert not any("lora_" in name for name, _ in again.model.named_parameters())
    torch.testing.assert_close(scores(again), adapted, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize(
    ("family", "names"),
    [
        ("Llama", "q_proj k_proj v_proj o_proj gate_proj up_proj down_proj"),
        ("GPT-2", "c_attn c_proj c_fc"),
        ("Mamba", "in_proj x_proj"),
    ],
)
def test_which_layers_have_adapters(family: str, names: str) -> None:
    """All linear ones, but the vocabulary's and those that a layer of states reads itself."""
    model = add_adapters(whole(family).model, LoraSettings(r=2, alpha=4))
    found = {name.partition(".lora_")[0].rpartition(".")[2] for name, _ in model.named_parameters() if "lora_" in name}
    assert found == set(names.split())


@pytest.mark.parametrize(
    ("family", "layer", "reason"),
    [
        ("Jamba", "dt_proj", "the jamba generator uses the weights of dt_proj and out_proj without"),
        ("Mamba", "out_proj", "the mamba generator uses the weights of dt_proj and out_proj without"),
        ("Llama", "input_layernorm", r"cannot have adapters \(.*LlamaRMSNorm"),
    ],
)
def test_layers_that_cannot_have_adapters(family: str, layer: str, reason: str) -> None:
    with pytest.raises(InputError, match=rf"--lora_target_modules {layer}:? {reason}"):
        add_adapters(whole(family).model, LoraSettings(r=2, alpha=4, target_modules=(layer,)))


@pytest.mark.parametrize("family", ["GPT-2", "Gemma", "Qwen3"])
def test_adapters_of_a_checkpoint(family: str, encoder: Any, source_folder: Path, tmp_path: Path) -> None:
    """Also where layers keep their weights transposed (GPT-2) and where the head is the embeddings (GPT-2, Gemma)."""
    write(family, encoder, tmp_path / "base")
    before = load_file(tmp_path / "base" / "model.safetensors")
    source, lora = str(source_folder), LoraSettings(r=2, alpha=4)
    model: Any = open_model(ModelRequest(str(tmp_path / "base"), passages_path=source, n_docs=3, lora=lora))
    optimizer = torch.optim.Adam([p for p in model.generator_model.parameters() if p.requires_grad], lr=0.05)
    for _ in range(3):
        optimizer.zero_grad()
        model.train()(QUESTIONS, ANSWERS).loss.backward()
        optimizer.step()
    model.eval().save(tmp_path / "adapted")
    merge_checkpoint(str(tmp_path / "adapted"), tmp_path / "merged")
    start: Any = open_model(ModelRequest(str(tmp_path / "base"), passages_path=source, n_docs=3))
    loss = model(QUESTIONS, ANSWERS).nll
    assert loss < start(QUESTIONS, ANSWERS).nll - 0.01
    for name in ("adapted", "merged"):
        again: Any = open_model(ModelRequest(str(tmp_path / name)))
        assert again(QUESTIONS, ANSWERS).nll == pytest.approx(loss, rel=1e-4)
    after, merged = (load_file(tmp_path / name / "model.safetensors") for name in ("base", "merged"))
    assert before.keys() == after.keys() == merged.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)
    tied = start.generator_model.get_output_embeddings().weight is start.generator_model.get_input_embeddings().weight
    assert tied == (family != "Qwen3")
