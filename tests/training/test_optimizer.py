"""Optimisers and schedules from settings, against those of torch and transformers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModel, AutoModelForSeq2SeqLM, optimization
from transformers.trainer_pt_utils import get_parameter_names

from ragstone.model.open import ModelRequest, open_model
from ragstone.training.optimizer import OptimizerSettings, Schedule, make_optimizer, make_schedule


@pytest.fixture
def rag(checkpoint_folder: Path, source_folder: Path) -> Any:
    return open_model(ModelRequest(str(checkpoint_folder), passages_path=str(source_folder)))


def normalisations(model: torch.nn.Module) -> list[type]:
    return [type(module) for module in model.modules() if "norm" in type(module).__name__.lower()]


def decayed(optimizer: torch.optim.Optimizer, model: torch.nn.Module) -> set[str]:
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    found = [(names[id(p)], group["weight_decay"]) for group in optimizer.param_groups for p in group["params"]]
    assert len(found) == len(names), "every parameter once"
    assert {decay for _, decay in found} == {0.0, 0.1}
    return {name for name, decay in found if decay}


def test_biases_and_normalisations_are_not_decayed(rag: Any, t5_folder: Path) -> None:
    """As transformers' own trainer tells them apart by module, for BART, DPR and T5."""
    for model in (rag, AutoModelForSeq2SeqLM.from_pretrained(t5_folder)):
        kinds = normalisations(model)
        assert len(kinds) >= 5
        weights = {name for name, _ in model.named_parameters()}
        expected = {name for name in get_parameter_names(model, kinds) if not name.endswith("bias")} & weights
        # T5's table of relative positions is a matrix, whatever it is called.
        expected |= {name for name in weights if name.endswith("relative_attention_bias.weight")}
        found = decayed(make_optimizer(model, OptimizerSettings(weight_decay=0.1)), model)
        assert found == expected
        assert not any("norm" in name.lower() for name in found)


def test_real_bert_normalisations_are_not_decayed(minilm_folder: str) -> None:
    model = AutoModel.from_pretrained(minilm_folder)
    found = decayed(make_optimizer(model, OptimizerSettings(weight_decay=0.1)), model)
    assert "encoder.layer.0.attention.output.dense.weight" in found
    assert not any("LayerNorm" in name or name.endswith(".bias") for name in found)


@pytest.mark.parametrize("adafactor", [False, True])
def test_a_step_size_of_its_own_for_the_question_encoder(rag: Any, adafactor: bool) -> None:
    settings = OptimizerSettings(1e-3, question_encoder_learning_rate=1e-5, weight_decay=0.1, adafactor=adafactor)
    optimizer = make_optimizer(rag, settings)
    encoder = {id(parameter) for parameter in rag.question_encoder.parameters()}
    rates = {id(p): group["lr"] for group in optimizer.param_groups for p in group["params"]}
    assert {rate for key, rate in rates.items() if key in encoder} == {1e-5}
    assert {rate for key, rate in rates.items() if key not in encoder} == {1e-3}
    assert optimizer.param_groups[0]["lr"] == 1e-3
    schedule = make_schedule(optimizer, settings, 10)
    for _ in range(5):
        optimizer.step()
        schedule.step()
    assert sorted({group["lr"] for group in optimizer.param_groups}) == pytest.approx([5e-6, 5e-4])


def test_frozen_parameters_are_left_out(checkpoint_folder: Path, source_folder: Path) -> None:
    request = ModelRequest(str(checkpoint_folder), passages_path=str(source_folder), freeze_question_encoder=True)
    model: Any = open_model(request)
    held = [p for group in make_optimizer(model, OptimizerSettings()).param_groups for p in group["params"]]
    assert {id(p) for p in held} == {id(p) for p in model.generator_model.parameters()}


THEIRS = {
    "linear": optimization.get_linear_schedule_with_warmup,
    "cosine": optimization.get_cosine_schedule_with_warmup,
    "cosine_w_restarts": optimization.get_cosine_with_hard_restarts_schedule_with_warmup,
    "polynomial": optimization.get_polynomial_decay_schedule_with_warmup,
}


@pytest.mark.parametrize("name", THEIRS)
@pytest.mark.parametrize("warmup", [0, 4])
def test_schedules_are_those_of_transformers(name: Schedule, warmup: int) -> None:
    settings = OptimizerSettings(0.1, schedule=name, warmup_steps=warmup)
    rates = []
    for make in (
        lambda optimizer: make_schedule(optimizer, settings, 20),
        lambda optimizer: THEIRS[name](optimizer, num_warmup_steps=warmup, num_training_steps=20),
    ):
        optimizer = make_optimizer(torch.nn.Linear(2, 2), settings)
        schedule = make(optimizer)
        seen = []
        for _ in range(20):
            seen.append(optimizer.param_groups[0]["lr"])
            optimizer.step()
            schedule.step()
        rates.append(seen)
    assert rates[0] == rates[1]
    assert max(rates[0]) == pytest.approx(0.1)
    assert rates[0][-1] < 0.02


def step(optimizer: torch.optim.Optimizer, model: torch.nn.Linear) -> torch.Tensor:
    model(torch.ones(1, 3)).pow(2).sum().backward()
    optimizer.step()
    return model.weight.detach().clone()


def linear() -> torch.nn.Linear:
    torch.manual_seed(0)
    return torch.nn.Linear(3, 3)


def test_adamw_and_adafactor_are_the_librarys() -> None:
    ours, theirs = linear(), linear()
    settings = OptimizerSettings(0.01, weight_decay=0.0, adam_epsilon=1e-3)
    expected = step(torch.optim.AdamW(theirs.parameters(), lr=0.01, eps=1e-3, weight_decay=0.0), theirs)
    adamw = step(make_optimizer(ours, settings), ours)
    assert torch.equal(adamw, expected)
    ours, theirs = linear(), linear()
    options = {"scale_parameter": False, "relative_step": False}
    expected = step(optimization.Adafactor(theirs.parameters(), lr=0.01, **options), theirs)
    adafactor = step(make_optimizer(ours, OptimizerSettings(0.01, adafactor=True)), ours)
    assert torch.equal(adafactor, expected)
    assert not torch.equal(adafactor, adamw)


@pytest.mark.parametrize("precision", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize(
    "device",
    ["cpu", pytest.param("cuda", marks=pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU here"))],
)
def test_weights_of_half_the_size_stay_finite(device: str, precision: torch.dtype) -> None:
    """In their precision, Adam's epsilon and the squares of small gradients are zero."""
    model = torch.nn.Linear(8, 8).to(device, precision)
    optimizer = make_optimizer(model, OptimizerSettings(1e-3))
    start = model.weight.detach().clone()
    for _ in range(3):
        # The first four outputs get no gradient, as tokens that are not read.
        (1e-4 * model(torch.randn(4, 8, device=device, dtype=precision))[:, 4:].sum()).backward()
        optimizer.step()
        optimizer.zero_grad()
    assert model.weight.isfinite().all()
    assert torch.equal(model.weight[:4], start[:4])
    assert (model.weight[4:] != start[4:]).any()
