"""What is counted beforehand, against what a model, its gradients and its optimiser hold after a step."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from ragstone.errors import InputError
from ragstone.model.lora import LoraSettings
from ragstone.model.open import ModelRequest, open_model
from ragstone.training.footprint import WeightUse, footprint
from ragstone.training.optimizer import OptimizerSettings, make_optimizer
from tests.conftest import join_models

LORA = LoraSettings(r=2, alpha=4)


@pytest.fixture(scope="module")
def decoder_only(tmp_path_factory: pytest.TempPathFactory, llama_folder: Path, models_folder: Path) -> Path:
    """The tiny Llama joined with the tiny question encoder."""
    return join_models(llama_folder, models_folder / "question_encoder", tmp_path_factory.mktemp("joined") / "rag")


def held_after_a_step(model: Any, use: WeightUse) -> int:
    """Bytes of weights, gradients and the optimiser's averages."""
    held = list(model.parameters())
    if use.trains:
        optimizer = make_optimizer(model.train(), OptimizerSettings(adafactor=use.adafactor))
        model(["who founded the town ?"], ["otto"]).loss.backward()
        optimizer.step()
        held += [weight.grad for weight in model.parameters() if weight.grad is not None]
        kept = [value for state in optimizer.state.values() for value in state.values() if torch.is_tensor(value)]
        held += [value for value in kept if value.ndim]
    return sum(tensor.numel() * tensor.element_size() for tensor in held)


@pytest.mark.parametrize(
    "use",
    [
        WeightUse(),
        WeightUse(trains=False, torch_dtype="bfloat16"),
        WeightUse(encoder_rests=True),
        WeightUse(adafactor=True),
        WeightUse(torch_dtype="bfloat16"),
        WeightUse(lora=LORA, torch_dtype="bfloat16"),
        WeightUse(lora=LoraSettings(r=3, alpha=4, target_modules=("q_proj", "v_proj"))),
        WeightUse(lora=LORA, quantization="8bit"),
    ],
    ids=str,
)
def test_it_is_what_a_run_holds(use: WeightUse, decoder_only: Path, source_folder: Path) -> None:
    """Adafactor's averages of rows and columns, which are not counted, are a part of so small matrices."""
    request = ModelRequest(
        str(decoder_only),
        passages_path=str(source_folder),
        n_docs=2,
        freeze_question_encoder=use.encoder_rests,
        torch_dtype=use.torch_dtype,
        quantization=use.quantization,
        lora=use.lora,
        device=torch.device("cpu"),
    )
    held = held_after_a_step(open_model(request), use)
    counted = footprint(decoder_only, use, 1)
    assert counted is not None
    assert held / 1.15 <= counted <= held if use.adafactor else counted == pytest.approx(held, rel=0.002)


def test_adapters_alone_are_counted_with_what_they_are_for(
    decoder_only: Path, source_folder: Path, tmp_path: Path
) -> None:
    """A base that is not on this machine is not guessed."""
    open_model(ModelRequest(str(decoder_only), passages_path=str(source_folder), lora=LORA)).save(tmp_path / "adapters")
    whole = footprint(decoder_only, WeightUse(lora=LORA), 1)
    assert whole is not None
    assert footprint(tmp_path / "adapters", WeightUse(), 1) == whole
    config = tmp_path / "adapters" / "config.json"
    config.write_text(config.read_text(encoding="utf-8").replace(str(decoder_only), "nowhere"), encoding="utf-8")
    assert footprint(tmp_path / "adapters", WeightUse(), 1) is None


def test_damaged_weights_count_by_their_size(checkpoint_folder: Path, source_folder: Path, tmp_path: Path) -> None:
    """What is wrong with them is said when the model is opened."""
    folder = shutil.copytree(checkpoint_folder, tmp_path / "rag")
    with (folder / "model.safetensors").open("r+b") as file:
        file.truncate(4000)
    assert footprint(folder, WeightUse(encoder_rests=True), 2) == 1000 * 4 * 5
    with pytest.raises(InputError, match=str(folder)):
        open_model(ModelRequest(str(folder), passages_path=str(source_folder)))


def test_pickled_weights_count_like_others(checkpoint_folder: Path, tmp_path: Path) -> None:
    """Those that two layers share once; a file that cannot be mapped by its size."""
    weights = load_file(checkpoint_folder / "model.safetensors")
    again = {**weights, "rag.generator.lm_head.weight": weights["rag.generator.model.shared.weight"]}
    torch.save(again, tmp_path / "pytorch_model.bin")
    use = WeightUse(encoder_rests=True)
    assert footprint(tmp_path, use, 2) == footprint(checkpoint_folder, use, 2)
    (tmp_path / "pytorch_model.bin").write_bytes(bytes(4000))
    assert footprint(tmp_path, use, 2) == 1000 * 4 * 5
