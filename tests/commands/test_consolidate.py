from __future__ import annotations

import json
import shutil
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from safetensors.torch import load_file, save_file
from transformers import (
    AutoTokenizer,
    DPRQuestionEncoder,
    PreTrainedTokenizerFast,
    RagConfig,
    RagSequenceForGeneration,
    RagTokenForGeneration,
)

from ragstone.__main__ import main
from ragstone.encoders.fresh import fresh_encoder
from ragstone.encoders.load import load_encoder, save_encoder
from ragstone.model.checkpoint import load_checkpoint, own_settings
from ragstone.model.lora import LoraSettings
from ragstone.model.open import ModelRequest, open_model
from ragstone.retrieval.method import MethodRequest
from tests.commands.conftest import refused


@pytest.fixture
def flags(models_folder: Path, tmp_path: Path) -> list[str]:
    """A checkpoint in tmp_path/rag."""
    return [
        "consolidate",
        *("--model_type", "rag_sequence"),
        *("--dest", str(tmp_path / "rag")),
        *("--generator_name_or_path", str(models_folder / "generator")),
        *("--question_encoder_name_or_path", str(models_folder / "question_encoder")),
    ]


def without(folder: Path, new: Path, missing: Iterable[str]) -> Path:
    """A copy of a model whose weights lack those that hold one of `missing` in their names."""
    shutil.copytree(folder, new)
    weights = load_file(new / "model.safetensors")
    kept = {name: tensor for name, tensor in weights.items() if not any(part in name for part in missing)}
    assert len(kept) < len(weights)
    save_file(kept, new / "model.safetensors", metadata={"format": "pt"})
    return new


@pytest.mark.parametrize(
    ("model_type", "model_class"), [("rag_sequence", RagSequenceForGeneration), ("rag_token", RagTokenForGeneration)]
)
def test_transformers_opens_the_checkpoint(
    flags: list[str],
    models_folder: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    model_type: str,
    model_class: type[RagSequenceForGeneration],
) -> None:
    assert main([*flags, "--model-type", model_type]) == 0
    assert f"{tmp_path / 'rag'} ({model_type})" in capsys.readouterr().out
    model, report = model_class.from_pretrained(tmp_path / "rag", output_loading_info=True)
    assert not report["missing_keys"]
    assert not report["unexpected_keys"]
    assert model.config.architectures == [model_class.__name__]
    assert model.config.retrieval_vector_size == 16
    for part in ("question_encoder", "generator"):
        tokenizer = AutoTokenizer.from_pretrained(tmp_path / "rag" / f"{part}_tokenizer")
        assert tokenizer.get_vocab() == AutoTokenizer.from_pretrained(models_folder / part).get_vocab()
    alone = DPRQuestionEncoder.from_pretrained(models_folder / "question_encoder").state_dict()
    joined = model.rag.question_encoder.state_dict()
    assert alone.keys() == joined.keys()
    assert all(torch.equal(alone[name], joined[name]) for name in alone)
    assert not list((tmp_path / "rag").glob("*.bin"))
    assert yaml.safe_load((tmp_path / "rag" / "settings.yaml").read_text())["model_type"] == model_type


def test_tokenizers_of_their_own_and_a_config_to_start_from(
    flags: list[str], models_folder: Path, tmp_path: Path
) -> None:
    # The models' own folders hold no tokenizer here.
    for name in ("generator", "question_encoder"):
        (tmp_path / name).mkdir()
        for file in ("config.json", "model.safetensors"):
            shutil.copy(models_folder / name / file, tmp_path / name / file)
    config = RagConfig(
        question_encoder={"model_type": "dpr"}, generator={"model_type": "bart"}, n_docs=3, doc_sep=" :: "
    )
    config.save_pretrained(tmp_path / "config")
    extra = {
        "generator_name_or_path": tmp_path / "generator",
        "question_encoder_name_or_path": tmp_path / "question_encoder",
        "generator_tokenizer_name_or_path": models_folder / "generator",
        "question_encoder_tokenizer_name_or_path": models_folder / "question_encoder",
        "config_name_or_path": tmp_path / "config",
    }
    assert main([*flags, *(word for name, value in extra.items() for word in (f"--{name}", str(value)))]) == 0
    checkpoint = load_checkpoint(str(tmp_path / "rag"))
    assert (checkpoint.config.n_docs, checkpoint.context.doc_sep) == (3, " :: ")
    assert checkpoint.config.generator.d_model == 16


def test_a_config_of_another_checkpoint_brings_none_of_its_parts(
    flags: list[str], chat_checkpoint: Path, worded_source: Path, tmp_path: Path
) -> None:
    """Neither the prompt nor the whole generator of its adapters; how passages are found is no part of a model."""
    request = ModelRequest(
        str(chat_checkpoint),
        passages_path=str(worded_source),
        n_docs=3,
        lora=LoraSettings(r=2, alpha=4),
        method=MethodRequest("bm25"),
    )
    open_model(request).save(tmp_path / "adapted")
    there = own_settings(RagConfig.from_pretrained(tmp_path / "adapted"))
    assert {"prompt", "adapter_base", "adapter_base_fingerprint", "retrieval"} <= there.keys()
    assert main([*flags, "--config_name_or_path", str(tmp_path / "adapted")]) == 0
    joined = load_checkpoint(str(tmp_path / "rag"))
    assert joined.context.template is None and joined.adapter_base is None
    assert (joined.config.n_docs, own_settings(joined.config)["retrieval"]) == (3, there["retrieval"])
    assert not {"prompt", "adapter_base", "adapter_base_fingerprint"} & own_settings(joined.config).keys()


def test_the_checkpoint_is_tried_out(
    flags: list[str], models_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """What it wrote is shown; one that cannot write is no checkpoint."""
    assert main(flags) == 0
    assert "checked     loads back and generates; without a passage it wrote '" in capsys.readouterr().out
    shutil.rmtree(tmp_path / "rag")
    mute = tmp_path / "mute"
    shutil.copytree(models_folder / "generator", mute)
    for name in ("config.json", "generation_config.json"):
        values = json.loads((mute / name).read_text())
        (mute / name).write_text(json.dumps({**values, "decoder_start_token_id": None}))
    assert "names no decoder_start_token_id" in refused(capsys, [*flags, "--generator_name_or_path", str(mute)])
    assert not (tmp_path / "rag").exists()


def test_the_question_encoder_is_tried_out(
    flags: list[str], models_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """One whose vectors are no numbers is refused, and nothing is written."""
    damaged = tmp_path / "damaged"
    shutil.copytree(models_folder / "question_encoder", damaged)
    weights = load_file(damaged / "model.safetensors")
    name = next(name for name in weights if name.endswith("LayerNorm.weight"))
    weights[name].fill_(float("nan"))
    save_file(weights, damaged / "model.safetensors", metadata={"format": "pt"})
    told = refused(capsys, [*flags, "--question_encoder_name_or_path", str(damaged)])
    assert "The question encoder gives a vector that is not finite; train it anew" in told
    assert not (tmp_path / "rag").exists()


def test_of_a_t5_question_encoder_the_encoder_alone_is_kept(
    flags: list[str], t5_folder: Path, documents_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([*flags, "--question_encoder_name_or_path", str(t5_folder)]) == 0
    joined = load_checkpoint(str(tmp_path / "rag")).question_encoder
    alone = load_encoder(str(t5_folder), "question")
    assert joined.embed(["the old town"]).tolist() == alone.embed(["the old town"]).tolist()
    source = ["--csv_path", str(documents_file), "--output_dir", str(tmp_path / "source")]
    assert main(["build-knowledge", *source, "--dpr_ctx_encoder_model_name", str(t5_folder)]) == 0
    capsys.readouterr()
    asked = ["ask", "--model_name_or_path", str(tmp_path / "rag"), "--passages_path", str(tmp_path / "source")]
    assert main([*asked, "--question", "who founded the town ?"]) == 0
    assert "posterior" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("part", "missing"),
    [("generator", ["encoder.layers.0.fc1.weight"]), ("question_encoder", ["attention.self.query.weight"])],
)
def test_new_weights_are_refused_unless_asked_for(
    flags: list[str],
    models_folder: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    part: str,
    missing: list[str],
) -> None:
    folder = without(models_folder / part, tmp_path / "torn", missing)
    arguments = [*flags, f"--{part}_name_or_path", str(folder)]
    message = refused(capsys, arguments)
    assert f"{folder} lacks" in message
    assert missing[0] in message
    assert "--allow_new_weights" in message
    assert not (tmp_path / "rag").exists()
    assert main([*arguments, "--allow_new_weights"]) == 0
    assert (tmp_path / "rag" / "model.safetensors").is_file()


def test_a_sentence_transformers_question_encoder(
    flags: list[str], tmp_path: Path, question_tokenizer: PreTrainedTokenizerFast
) -> None:
    encoder = fresh_encoder(question_tokenizer, hidden_size=16, heads=2)
    save_encoder(encoder, tmp_path / "encoder")
    assert (tmp_path / "encoder" / "modules.json").is_file()
    assert main([*flags, "--question_encoder_name_or_path", str(tmp_path / "encoder")]) == 0
    checkpoint = load_checkpoint(str(tmp_path / "rag"))
    assert checkpoint.question_encoder.settings.pooling == "mean"
    questions = ["who founded the town ?", "what is blue"]
    np.testing.assert_allclose(
        checkpoint.question_encoder.embed(questions),
        load_encoder(str(tmp_path / "encoder"), "question").embed(questions),
        rtol=1e-6,
    )
    # Such a folder encodes both sides: the checkpoint knows which sources belong to it.
    assert checkpoint.passage_encoder.fingerprint == load_encoder(str(tmp_path / "encoder"), "passage").fingerprint()


def test_a_passage_encoder_that_is_named_is_remembered(
    flags: list[str], models_folder: Path, tmp_path: Path, source_folder: Path
) -> None:
    assert main([*flags, "--passage_encoder_name_or_path", str(models_folder / "passage_encoder")]) == 0
    built_by = json.loads((source_folder / "knowledge.json").read_text())["encoder_fingerprint"]
    assert load_checkpoint(str(tmp_path / "rag")).passage_encoder.fingerprint == built_by


@pytest.mark.parametrize(
    ("extra", "message"),
    [
        (["--model_type", "bart"], "--model_type is 'bart', but must be one of rag_sequence, rag_token"),
        (["--generator_name_or_path", "nobody/nothing"], "'nobody/nothing' is neither a folder nor a model"),
        (["--question_encoder_name_or_path", "nobody/no"], "'nobody/no' is neither a folder nor a model"),
        (["--config_name_or_path", "nobody/config"], "'nobody/config' is neither a folder nor a model"),
        (["--encoder", "x"], "There is no flag --encoder"),
    ],
)
def test_what_cannot_be_used_is_refused(
    flags: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str], extra: list[str], message: str
) -> None:
    assert message in refused(capsys, [*flags, *extra])
    assert not any(tmp_path.iterdir())


def test_parts_that_are_something_else(
    flags: list[str], models_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    encoder = str(models_folder / "question_encoder")
    assert encoder in refused(capsys, [*flags, "--generator_name_or_path", encoder])
    assert not any(tmp_path.iterdir())


def test_a_tokenizer_that_is_too_large(
    flags: list[str],
    models_folder: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    tokenizer = AutoTokenizer.from_pretrained(models_folder / "generator")
    size = len(tokenizer)
    tokenizer.add_tokens(["one", "more"])
    tokenizer.save_pretrained(tmp_path / "tokenizer")
    message = refused(capsys, [*flags, "--generator_tokenizer_name_or_path", str(tmp_path / "tokenizer")])
    assert f"has {size + 2} tokens, but the generator" in message


def test_a_used_folder_stays_as_it_is(flags: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "rag").mkdir()
    (tmp_path / "rag" / "mine").write_text("", encoding="utf-8")
    assert "is not empty; give" in refused(capsys, flags)
    assert [path.name for path in (tmp_path / "rag").iterdir()] == ["mine"]
