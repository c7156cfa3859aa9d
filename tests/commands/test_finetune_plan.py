"""What ragstone finetune is told on the command line reaches the run; flags about the generator, to what is saved."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from ragstone.__main__ import main
from ragstone.commands.finetune_plan import placement_request, run_plan
from ragstone.commands.finetune_settings import FinetuneSettings
from ragstone.flags import Flag, flags_of
from ragstone.model.checkpoint import ADAPTER
from ragstone.model.open import ModelRequest, open_model
from ragstone.settings import parse_settings
from tests.commands.conftest import layers_called
from tests.conftest import PAIRS

REQUIRED = ["--data_dir", "a", "--output_dir", "b", "--model_name_or_path", "c"]
BESIDE: dict[str, list[str]] = {
    **{name: ["--lora_r", "4"] for name in ("lora_alpha", "lora_dropout", "lora_target_modules", "quantization")},
    "do_train": ["--do_predict"],
    **{name: ["--retriever", "hybrid"] for name in ("hybrid_fusion", "hybrid_weight")},
}
"""Flags that one is for."""
VALUES: dict[str, list[str]] = {
    "index_name": ["exact"],
    "prompt_template": ["{text} {question}"],
    "lora_target_modules": ["q_proj", "v_proj"],
    "gpus": ["0"],
    "distributed_timeout": ["7"],
}
"""Where not any value will do."""
ELSEWHERE = {"num_workers", "distributed_port", "fast_dev_run"}
"""Flags that commands/finetune.py reads itself."""


def what_runs(words: list[str]) -> tuple[Any, Any]:
    """What is done with these flags, without the records that are kept and compared of them."""
    settings = parse_settings(FinetuneSettings, [*REQUIRED, *words], "finetune", "")
    return dataclasses.replace(run_plan(settings), record={}, fixed={}, shared={}), placement_request(settings)


def a_change(flag: Flag) -> list[str]:
    """The flag with another value than its default."""
    if flag.name in VALUES:
        return [f"--{flag.name}", *VALUES[flag.name]]
    if flag.kind is bool:
        return [f"--{flag.name}"]
    # A Literal's first choice is what most have as their default.
    return [f"--{flag.name}", flag.choices[-1] if flag.choices else {int: "7", float: "0.25"}.get(flag.kind, "x")]


@pytest.mark.parametrize("flag", flags_of(FinetuneSettings).values(), ids=lambda flag: flag.name)
def test_every_flag_reaches_the_run(flag: Flag) -> None:
    beside = BESIDE.get(flag.name, [])
    changes = what_runs([*beside, *a_change(flag)]) != what_runs(beside)
    assert changes != (flag.name in ELSEWHERE)


@pytest.fixture
def one_step(chat_checkpoint: Path, source_folder: Path, pairs_folder: Path, tmp_path: Path) -> list[str]:
    """A run of one step over all pairs, of the Llama whose tokenizer has a chat template."""
    folders = ["--data_dir", str(pairs_folder), "--output_dir", str(tmp_path / "run")]
    where = ["--model_name_or_path", str(chat_checkpoint), "--passages_path", str(source_folder), "--n_docs", "3"]
    sizes = ["--max_steps", "1", "--train_batch_size", "10", "--num_beams", "1", "--val_max_target_length", "4"]
    return ["finetune", *folders, *where, *sizes]


def trained(words: list[str], folder: Path) -> tuple[float, dict[str, Any]]:
    """The loss per token of the first step, and config.json of what is saved after it."""
    assert main(words) == 0
    metrics = json.loads((folder / "run" / "metrics.json").read_text(encoding="utf-8"))
    config = json.loads((folder / "run" / "best" / "config.json").read_text(encoding="utf-8"))
    return metrics["val"][0]["loss_per_token"], config["ragstone"]


def loss_per_token(checkpoint: Path, source: Path, **changes: Any) -> float:
    """The same of a model that is opened so."""
    model = open_model(ModelRequest(str(checkpoint), passages_path=str(source), n_docs=3, **changes))
    loss = model([question for question, _ in PAIRS], [answer for _, answer in PAIRS])
    return loss.nll / loss.target_tokens


def test_the_prompt_and_the_weights_type(
    one_step: list[str], chat_checkpoint: Path, source_folder: Path, tmp_path: Path
) -> None:
    template, chat = "{text} // {question}", ["--chat", "False"]
    prompt = ["--prompt_template", template]
    loss, own = trained([*one_step, *prompt, "--chat", "--torch_dtype", "bfloat16"], tmp_path)
    assert own["prompt"] == {"template": template, "chat": True}
    expected = loss_per_token(
        chat_checkpoint, source_folder, prompt_template=template, chat=True, torch_dtype="bfloat16"
    )
    assert loss == pytest.approx(expected, rel=1e-5)
    whole = loss_per_token(chat_checkpoint, source_folder, prompt_template=template, chat=True)
    assert abs(loss - whole) > 1e-4, "of rounded weights"
    weights = load_file(tmp_path / "run" / "best" / "model.safetensors")
    types = {name.split(".")[1]: tensor.dtype for name, tensor in weights.items()}
    assert types == {"question_encoder": torch.float32, "generator": torch.bfloat16}
    # Taken up again, and without the chat template.
    again = [str(tmp_path / "run" / "best") if word == str(chat_checkpoint) else word for word in one_step]
    _, own = trained([*again, *chat, "--output_dir", str(tmp_path / "other" / "run")], tmp_path / "other")
    assert own["prompt"]["chat"] is False


def test_adapters_of_some_layers_over_few_bits(
    one_step: list[str], chat_checkpoint: Path, source_folder: Path, tmp_path: Path
) -> None:
    flags = ["--lora_r", "2", "--lora_alpha", "6", "--lora_target_modules", "q_proj", "v_proj"]
    with layers_called() as called:
        _, own = trained([*one_step, *flags, "--quantization", "8bit"], tmp_path)
    assert "Linear8bitLt" in called.classes
    assert own["adapter_base"] == str(chat_checkpoint.resolve())
    adapters = json.loads((tmp_path / "run" / "best" / ADAPTER / "adapter_config.json").read_text(encoding="utf-8"))
    assert sorted(adapters["target_modules"]) == ["q_proj", "v_proj"]
    assert (adapters["r"], adapters["lora_alpha"]) == (2, 6)
    names = load_file(tmp_path / "run" / "best" / ADAPTER / "adapter_model.safetensors")
    assert {name.split(".")[-3] for name in names} == {"q_proj", "v_proj"}
