"""RAG checkpoints with a decoder-only generator: joined, trained, saved and opened again, whole and as adapters."""

from __future__ import annotations

import dataclasses
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    DPRQuestionEncoder,
    Gemma3Config,
    Gemma3ForCausalLM,
    Gemma3ForConditionalGeneration,
    Gemma3TextConfig,
    SiglipVisionConfig,
)

from ragstone.__main__ import main
from ragstone.commands.eval import EvalSettings, eval
from ragstone.commands.finetune import FinetuneSettings, finetune
from ragstone.commands.finetune_plan import run_plan
from ragstone.errors import InputError
from ragstone.model.checkpoint import ADAPTER, load_checkpoint, own_settings, record_own
from ragstone.model.consolidate import merge_checkpoint
from ragstone.model.decoding import Decoding
from ragstone.model.lora import LoraSettings
from ragstone.model.open import ModelRequest, open_model
from ragstone.model.verify import verify_checkpoint
from tests.conftest import join_models, save_llama
from tests.training.test_run import run_until

QUESTIONS = ["who founded the town ?", "what is blue ?", "who was king of the hill ?"]
ANSWERS = ["otto", "the river", "mara"]
TEMPLATE = "{passage} // {question} / "


@pytest.fixture(scope="session")
def llama_checkpoint(tmp_path_factory: pytest.TempPathFactory, models_folder: Path, llama_folder: Path) -> Path:
    folder = tmp_path_factory.mktemp("llama-checkpoint") / "rag"
    return join_models(llama_folder, models_folder / "question_encoder", folder, prompt_template=TEMPLATE)


@pytest.fixture
def opened(llama_checkpoint: Path, source_folder: Path) -> Callable[..., Any]:
    def opener(**changes: Any) -> Any:
        request = {"name_or_path": str(llama_checkpoint), "n_docs": 3, "passages_path": str(source_folder), **changes}
        return open_model(ModelRequest(**request))

    return opener


@pytest.mark.parametrize("kind", ["rag_sequence", "rag_token"])
def test_loss_and_gradients_are_the_definition(opened: Callable[..., Any], llama_folder: Path, kind: str) -> None:
    """Against transformers' model alone, prompt by prompt, with the marginal written out."""
    model = opened(model_type=kind)
    loss = model(QUESTIONS, ANSWERS).loss
    loss.backward()
    theirs = AutoModelForCausalLM.from_pretrained(llama_folder)
    tokenizer = AutoTokenizer.from_pretrained(llama_folder)
    encoder = opened().question_encoder
    expected = torch.zeros(())
    for question, answer in zip(QUESTIONS, ANSWERS, strict=True):
        evidence = model.find([question])
        vector = encoder(**encoder.tokenize([question]))[0]
        found = model.finder.retriever.retrieve(vector[None].detach().numpy(), 3)
        prior = (torch.from_numpy(found.vectors[0]) @ vector).log_softmax(dim=0)
        target = [*tokenizer(answer, add_special_tokens=False)["input_ids"], tokenizer.eos_token_id]
        rows = []
        for passage in evidence.passages[0]:
            text = f"{passage.title} / {passage.text} // {question} /"
            prompt = tokenizer(text)["input_ids"][:-1]
            logits = theirs(torch.tensor([[*prompt, *target[:-1]]])).logits[0, len(prompt) - 1 :]
            rows.append(logits.log_softmax(dim=-1)[range(len(target)), target])
        tokens = torch.stack(rows)
        if kind == "rag_sequence":
            expected = expected - (prior + tokens.sum(dim=1)).logsumexp(dim=0)
        else:
            expected = expected - (prior[:, None] + tokens).logsumexp(dim=0).sum()
    expected.backward()
    torch.testing.assert_close(loss, expected, rtol=1e-5, atol=0)
    for ours, other in ((model.generator_model, theirs), (model.question_encoder.model, encoder.model)):
        pairs = zip(ours.named_parameters(), other.parameters(), strict=True)
        both = [(name, mine.grad, right.grad) for (name, mine), right in pairs if right.grad is not None]
        size = torch.stack([right.norm() for _, _, right in both]).norm().item()
        for name, mine, right in both:
            torch.testing.assert_close(mine, right, rtol=1e-5, atol=1e-5 * size, msg=name)


@pytest.mark.parametrize("kind", ["rag_sequence", "rag_token"])
def test_a_batch_answers_like_each_question_alone(opened: Callable[..., Any], kind: str) -> None:
    model = opened(model_type=kind)
    decoding = Decoding(num_beams=3, num_return_sequences=3, max_length=8)
    for question, together in zip(QUESTIONS, model.generate(QUESTIONS, decoding), strict=True):
        (alone,) = model.generate([question], decoding)
        assert [answer.labels for answer in together] == [answer.labels for answer in alone]
        for mine, other in zip(together, alone, strict=True):
            assert mine.score == pytest.approx(other.score, rel=1e-4)
            assert sum(found.posterior for found in mine.passages) == pytest.approx(1, rel=1e-4)


@pytest.mark.parametrize("lora", [None, LoraSettings(r=2, alpha=4)])
def test_gradient_checkpointing_changes_nothing(opened: Callable[..., Any], lora: LoraSettings | None) -> None:
    """Of the weights, or of adapters that are not as they were made."""
    plain, saving = opened(lora=lora), opened(lora=lora, gradient_checkpointing=True)
    torch.manual_seed(0)
    given = {name: torch.randn_like(p) / 5 for name, p in plain.named_parameters() if "lora_" in name}
    for model in (plain, saving):
        model.load_state_dict(given, strict=False)
    losses = [model.train()(QUESTIONS, ANSWERS).loss for model in (plain, saving)]
    for loss in losses:
        loss.backward()
    torch.testing.assert_close(*losses)
    graded = 0
    for (name, mine), other in zip(plain.named_parameters(), saving.parameters(), strict=True):
        torch.testing.assert_close(mine.grad, other.grad)
        graded += mine.grad is not None and (lora is None or "lora_" in name)
    assert graded == (len(given) if lora else len(list(plain.parameters())))


def test_saved_and_opened_again(opened: Callable[..., Any], tmp_path: Path) -> None:
    model = opened(model_type="rag_token")
    model.save(tmp_path / "again")
    again = open_model(ModelRequest(str(tmp_path / "again")))
    assert again.model_type == "rag_token"
    assert again.fingerprint() == model.fingerprint()
    decoding = Decoding(num_beams=2, max_length=8)
    assert again.generate(QUESTIONS, decoding) == model.generate(QUESTIONS, decoding)
    names = set(load_file(tmp_path / "again" / "model.safetensors"))
    assert {name.partition(".")[0] for name in names} == {"rag"}
    assert any(name.startswith("rag.generator.model.layers.1.") for name in names)


def test_transformers_reads_both_parts(llama_checkpoint: Path, llama_folder: Path, models_folder: Path) -> None:
    """From the names that the documentation gives; what is not there is tied to what is."""
    weights = load_file(llama_checkpoint / "model.safetensors")
    for prefix, folder, kind in (
        ("rag.generator.", llama_folder, AutoModelForCausalLM),
        ("rag.question_encoder.", models_folder / "question_encoder", DPRQuestionEncoder),
    ):
        expected = kind.from_pretrained(folder)
        read = type(expected)(expected.config)
        part = {name.removeprefix(prefix): tensor for name, tensor in weights.items() if name.startswith(prefix)}
        missing, unexpected = read.load_state_dict(part, strict=False)
        assert not unexpected and set(missing) <= set(read._tied_weights_keys or ())
        for mine, theirs in zip(read.parameters(), expected.parameters(), strict=True):
            assert torch.equal(mine, theirs)


def settings(folder: Path, checkpoint: Path, pairs: Path, source: Path, **changes: Any) -> FinetuneSettings:
    flags: dict[str, Any] = {
        "data_dir": pairs,
        "output_dir": folder,
        "model_name_or_path": str(checkpoint),
        "passages_path": str(source),
        "train_batch_size": 5,
        "num_train_epochs": 3,
        "learning_rate": 0.02,
        "num_beams": 2,
        "val_max_target_length": 8,
        **changes,
    }
    return FinetuneSettings(**flags)


@pytest.mark.parametrize("lora", [{}, {"lora_r": 4, "lora_alpha": 16}])
def test_fine_tuned(
    lora: dict[str, int], llama_checkpoint: Path, pairs_folder: Path, source_folder: Path, tmp_path: Path
) -> None:
    """The loss falls; with LoRA the generator stays as it was, and adapters alone are saved beside the encoder."""
    before = load_file(llama_checkpoint / "model.safetensors")
    finetune(settings(tmp_path / "run", llama_checkpoint, pairs_folder, source_folder, **lora))
    best = tmp_path / "run" / "best"
    tuned = open_model(ModelRequest(str(best)))
    start = open_model(ModelRequest(str(llama_checkpoint), passages_path=str(source_folder)))
    with torch.no_grad():
        assert tuned(QUESTIONS, ANSWERS).nll < 0.9 * start(QUESTIONS, ANSWERS).nll
    saved = set(load_file(best / "model.safetensors"))
    assert all(
        torch.equal(tensor, before[name]) for name, tensor in load_file(llama_checkpoint / "model.safetensors").items()
    )
    if not lora:
        assert saved == set(before)
        return
    assert not any(name.startswith("rag.generator.") for name in saved)
    trained = {name for name, parameter in tuned.generator_model.named_parameters() if parameter.requires_grad}
    assert trained and all("lora_" in name for name in trained)
    for name, tensor in before.items():
        if name.startswith("rag.generator."):
            key = name.removeprefix("rag.generator.")
            held = dict(tuned.generator_model.base_model.model.state_dict())
            other = held.get(key, held.get(key.replace(".weight", ".base_layer.weight")))
            assert other is not None and torch.equal(other, tensor)
    assert main(["consolidate", "--merge_lora", str(best), "--dest", str(tmp_path / "merged")]) == 0
    merged = open_model(ModelRequest(str(tmp_path / "merged")))
    assert set(load_file(tmp_path / "merged" / "model.safetensors")) == set(before)
    decoding = Decoding(num_beams=2, max_length=8)
    for mine, other in zip(merged.generate(QUESTIONS, decoding), tuned.generate(QUESTIONS, decoding), strict=True):
        assert mine[0].text == other[0].text
        assert mine[0].score == pytest.approx(other[0].score, rel=1e-4)


def test_adapters_are_trained_on_and_their_base_must_be_there(
    opened: Callable[..., Any], llama_checkpoint: Path, source_folder: Path, tmp_path: Path
) -> None:
    base = tmp_path / "base"
    shutil.copytree(llama_checkpoint, base)
    lora = LoraSettings(r=2, alpha=4, target_modules=("q_proj", "v_proj"))
    model = opened(name_or_path=str(base), lora=lora)
    model(QUESTIONS, ANSWERS).loss.backward()
    touched = {name for name, parameter in model.generator_model.named_parameters() if parameter.grad is not None}
    assert touched and all("q_proj.lora_" in name or "v_proj.lora_" in name for name in touched)
    model.save(tmp_path / "adapted")
    assert (tmp_path / "adapted" / ADAPTER / "adapter_model.safetensors").is_file()
    again = open_model(ModelRequest(str(tmp_path / "adapted"), lora=lora))
    assert again.fingerprint() == model.fingerprint()
    with pytest.raises(InputError, match=r"--lora_r is 3, but the adapters of .* have 2"):
        open_model(ModelRequest(str(tmp_path / "adapted"), lora=LoraSettings(r=3, alpha=4)))
    with pytest.raises(InputError, match=r"--lora_alpha is 8, but the adapters of .* have 4"):
        open_model(ModelRequest(str(tmp_path / "adapted"), lora=dataclasses.replace(lora, alpha=8)))
    verify_checkpoint(tmp_path / "adapted")
    path = tmp_path / "adapted" / ADAPTER / "adapter_model.safetensors"
    adapters = load_file(path)
    save_file({name: tensor * torch.nan for name, tensor in adapters.items()}, path)
    with pytest.raises(InputError, match=r"adapter_model\.safetensors is damaged"):
        verify_checkpoint(tmp_path / "adapted")
    save_file(adapters, path)
    weights = load_file(base / "model.safetensors")
    name = next(name for name in weights if name.startswith("rag.generator."))
    save_file({**weights, name: weights[name] + 1}, base / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(InputError, match=r"generator of .*base, which has changed since they were made"):
        open_model(ModelRequest(str(tmp_path / "adapted")))
    shutil.rmtree(base)
    with pytest.raises(InputError, match=r"holds adapters for the generator of .*base: .* is neither a folder nor"):
        open_model(ModelRequest(str(tmp_path / "adapted")))


def test_adapters_over_what_was_merged_from_others(opened: Callable[..., Any], tmp_path: Path) -> None:
    """Over rounded weights, of which nothing is recorded that could be compared: not the base before the last."""
    lora = LoraSettings(r=2, alpha=4)
    model = opened(lora=lora)
    model.save(tmp_path / "adapted")
    stale = own_settings(load_checkpoint(str(tmp_path / "adapted")).config)["adapter_base_fingerprint"]
    with torch.no_grad():
        for name, parameter in model.generator_model.named_parameters():
            if "lora_B" in name:
                parameter.normal_(std=0.3)
    model.save(tmp_path / "adapted")
    merge_checkpoint(str(tmp_path / "adapted"), tmp_path / "merged")
    assert not {"adapter_base", "adapter_base_fingerprint"} & own_settings(_config(tmp_path / "merged")).keys()
    for name in ("merged", "with the old fingerprint"):
        base = tmp_path / name
        if not base.exists():
            shutil.copytree(tmp_path / "merged", base)
            config = _config(base)
            record_own(config, adapter_base_fingerprint=stale)
            config.save_pretrained(base)
        opened(name_or_path=str(base), lora=lora, torch_dtype="bfloat16").save(tmp_path / f"{name}, adapted")
        assert load_checkpoint(str(tmp_path / f"{name}, adapted")).adapter_base == str(base)


def _config(folder: Path) -> Any:
    return AutoConfig.from_pretrained(folder)


def test_adapters_of_a_sequence_to_sequence_generator(
    checkpoint_folder: Path, source_folder: Path, tmp_path: Path
) -> None:
    lora = LoraSettings(r=2, alpha=4)
    request = ModelRequest(str(checkpoint_folder), passages_path=str(source_folder), n_docs=3, lora=lora)
    model: Any = open_model(request)
    optimizer = torch.optim.SGD([p for p in model.generator_model.parameters() if p.requires_grad], lr=0.1)
    losses = []
    for _ in range(3):
        loss = model(QUESTIONS, ANSWERS).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0]
    assert all("lora_" in name for name, p in model.generator_model.named_parameters() if p.requires_grad)
    model.save(tmp_path / "adapted")
    merge_checkpoint(str(tmp_path / "adapted"), tmp_path / "merged")
    decoding = Decoding(num_beams=2, max_length=8)
    expected = model.generate(QUESTIONS, decoding)
    for folder in ("adapted", "merged"):
        again: Any = open_model(ModelRequest(str(tmp_path / folder)))
        for mine, other in zip(again.generate(QUESTIONS, decoding), expected, strict=True):
            assert mine[0].text == other[0].text
            assert mine[0].score == pytest.approx(other[0].score, rel=1e-4)


def test_a_run_with_adapters_is_resumed_and_evaluated(
    llama_checkpoint: Path, pairs_folder: Path, source_folder: Path, tmp_path: Path
) -> None:
    """As if it had not been stopped; every checkpoint is opened over the one base."""
    flags = {"lora_r": 2, "lora_alpha": 4, "lr_scheduler": "polynomial", "seed": 3, "num_train_epochs": 4}
    folders = (llama_checkpoint, pairs_folder, source_folder)
    finetune(settings(tmp_path / "whole", *folders, **flags))
    finetune(settings(tmp_path / "parts", *folders, **flags, fast_dev_run=True))
    run_until(run_plan(settings(tmp_path / "parts", *folders, **flags)), 4)
    finetune(settings(tmp_path / "parts", *folders, **flags, resume=True, do_predict=True, do_train=True))
    whole, parts = (
        load_file(tmp_path / name / "last" / ADAPTER / "adapter_model.safetensors") for name in ("whole", "parts")
    )
    assert all(torch.equal(tensor, parts[name]) for name, tensor in whole.items())
    assert (tmp_path / "parts" / "test_predictions.txt").is_file()
    evaluated = eval(
        EvalSettings(
            evaluation_set=pairs_folder / "val.source",
            gold_data_path=pairs_folder / "val.target",
            gold_data_mode="ans",
            model_name_or_path=str(tmp_path / "parts"),
            predictions_path=tmp_path / "answers.txt",
            eval_all_checkpoints=True,
            num_beams=1,
            max_length=6,
        )
    )
    assert len(evaluated.evaluations) > 1


@pytest.mark.slow
def test_two_processes_train_the_adapters_of_one(
    llama_checkpoint: Path, pairs_folder: Path, source_folder: Path, tmp_path: Path
) -> None:
    flags = {"lora_r": 2, "lora_alpha": 4, "num_train_epochs": 2, "gpus": 0, "max_grad_norm": 0.0}
    folders = (llama_checkpoint, pairs_folder, source_folder)
    finetune(settings(tmp_path / "one", *folders, **{**flags, "train_batch_size": 10}))
    finetune(settings(tmp_path / "two", *folders, **flags, num_processes=2))
    one, two = (load_file(tmp_path / n / "last" / ADAPTER / "adapter_model.safetensors") for n in ("one", "two"))
    for name, tensor in one.items():
        torch.testing.assert_close(two[name], tensor, rtol=1e-3, atol=1e-5)


def test_layers_that_are_not_there(opened: Callable[..., Any]) -> None:
    with pytest.raises(InputError, match=r"--lora_target_modules query names no layer.* q_proj"):
        opened(lora=LoraSettings(r=2, alpha=4, target_modules=("query",)))


def test_merging_takes_no_other_flags(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["--merge_lora", "run", "--dest", str(tmp_path / "merged"), "--model_type", "rag_token"]
    assert main(["consolidate", *words]) == 2
    assert "--merge_lora changes nothing but the generator's weights; leave --model_type out" in capsys.readouterr().err


def test_merging_what_has_no_adapters(llama_checkpoint: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="has no adapters to merge"):
        merge_checkpoint(str(llama_checkpoint), tmp_path / "merged")


@pytest.mark.parametrize("name", ["bfloat16", "float16"])
def test_weights_of_another_type(opened: Callable[..., Any], name: str) -> None:
    """Half the bytes; the loss is nearly the same."""
    model = opened(torch_dtype=name)
    assert {parameter.dtype for parameter in model.generator_model.parameters()} == {getattr(torch, name)}
    assert {parameter.dtype for parameter in model.question_encoder.parameters()} == {torch.float32}
    with torch.no_grad():
        assert model(QUESTIONS, ANSWERS).nll == pytest.approx(opened()(QUESTIONS, ANSWERS).nll, rel=0.02)
        assert model.generate(QUESTIONS, Decoding(num_beams=2, max_length=5))


def test_a_generator_is_what_transformers_opens_as_one(
    models_folder: Path, source_folder: Path, generator_tokenizer: Any, tmp_path: Path
) -> None:
    """Whatever its class is called: Gemma 3 with its eye shut answers as the language model within it."""
    torch.manual_seed(0)
    sizes: dict[str, Any] = {
        "hidden_size": 16,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "intermediate_size": 16,
    }
    ends = {name: getattr(generator_tokenizer, name) for name in ("bos_token_id", "eos_token_id", "pad_token_id")}
    text = Gemma3TextConfig(vocab_size=len(generator_tokenizer), num_key_value_heads=1, head_dim=8, **sizes, **ends)
    eye = SiglipVisionConfig(image_size=28, patch_size=14, **sizes)
    seeing = Gemma3ForConditionalGeneration(Gemma3Config(text_config=text, vision_config=eye, **ends))
    reading = Gemma3ForCausalLM(text)
    reading.model.load_state_dict(seeing.model.language_model.state_dict())
    answers = []
    for name, model in (("seeing", seeing), ("reading", reading)):
        model.generation_config.update(**ends)
        model.save_pretrained(tmp_path / name)
        generator_tokenizer.save_pretrained(tmp_path / name)
        join_models(tmp_path / name, models_folder / "question_encoder", tmp_path / f"rag_{name}")
        rag: Any = open_model(ModelRequest(str(tmp_path / f"rag_{name}"), passages_path=str(source_folder), n_docs=2))
        found = rag.generate(QUESTIONS, Decoding(num_beams=2, max_length=5))
        answers.append([(row[0].text, pytest.approx(row[0].score, abs=1e-4)) for row in found])
    assert answers[0] == answers[1]


def test_an_encoder_is_no_generator(models_folder: Path, plain_bert_folder: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="is a bert model, which generates no text"):
        join_models(plain_bert_folder, models_folder / "question_encoder", tmp_path / "rag")
    assert not (tmp_path / "rag").exists()


def test_alone_it_is_a_closed_book(llama_folder: Path, tmp_path: Path) -> None:
    """Asked without passages, its loss is transformers' own."""
    model: Any = open_model(ModelRequest(str(llama_folder), prompt_template="{text} {question} /"))
    tokenizer = AutoTokenizer.from_pretrained(llama_folder)
    theirs = AutoModelForCausalLM.from_pretrained(llama_folder)
    prompt = tokenizer("what is blue ? /")["input_ids"][:-1]
    target = [*tokenizer("the river", add_special_tokens=False)["input_ids"], tokenizer.eos_token_id]
    ids = torch.tensor([[*prompt, *target]])
    labels = torch.tensor([[*[-100] * len(prompt), *target]])
    expected = theirs(input_ids=ids, labels=labels).loss * len(target)
    torch.testing.assert_close(model(["what is blue ?"], ["the river"]).loss, expected, rtol=1e-5, atol=0)
    model.save(tmp_path / "again")
    again: Any = open_model(ModelRequest(str(tmp_path / "again")))
    assert again.fingerprint() == model.fingerprint()


@pytest.mark.parametrize("bits", ["8bit", "4bit"])
def test_in_few_bits(
    models_folder: Path, source_folder: Path, tmp_path: Path, bits: Any, generator_tokenizer: Any
) -> None:
    """Layers in 8 or 4 bits answer nearly alike; adapters beside them learn, and merge into the whole weights."""
    save_llama(tmp_path / "llama", generator_tokenizer, 64)
    join_models(tmp_path / "llama", models_folder / "question_encoder", tmp_path / "rag", prompt_template=TEMPLATE)
    request = ModelRequest(str(tmp_path / "rag"), passages_path=str(source_folder), n_docs=3)
    whole: Any = open_model(request)
    few: Any = open_model(dataclasses.replace(request, quantization=bits))
    layer = few.generator_model.model.layers[0].mlp.up_proj
    assert type(layer).__name__ == f"Linear{'8bitLt' if bits == '8bit' else '4bit'}"
    assert type(few.generator_model.lm_head) is torch.nn.Linear
    assert few.question_encoder.fingerprint() == whole.question_encoder.fingerprint()
    with torch.no_grad():
        assert few(QUESTIONS, ANSWERS).nll == pytest.approx(whole(QUESTIONS, ANSWERS).nll, rel=0.1)
    assert few.generate(QUESTIONS, Decoding(num_beams=2, max_length=6))
    adapted = dataclasses.replace(request, quantization=bits, lora=LoraSettings(r=2, alpha=4))
    if bits == "4bit" and few.generator_model.device.type == "cpu":
        with pytest.raises(InputError, match="Beside --quantization 4bit, adapters can be trained on a GPU only"):
            open_model(adapted)
        return
    tuned: Any = open_model(adapted).train()
    optimizer = torch.optim.SGD([p for p in tuned.parameters() if p.requires_grad], lr=0.005)
    losses = []
    for _ in range(5):
        loss = tuned(QUESTIONS, ANSWERS).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0]
    tuned.eval().save(tmp_path / "adapted")
    merge_checkpoint(str(tmp_path / "adapted"), tmp_path / "merged")
    merged: Any = open_model(ModelRequest(str(tmp_path / "merged")))
    beside: Any = open_model(ModelRequest(str(tmp_path / "adapted")))
    with torch.no_grad():
        assert merged(QUESTIONS, ANSWERS).nll == pytest.approx(tuned(QUESTIONS, ANSWERS).nll, rel=0.1)
        assert merged(QUESTIONS, ANSWERS).nll == pytest.approx(beside(QUESTIONS, ANSWERS).nll, rel=1e-4)
