"""Generators of several languages: what is recorded, what the decoder starts from, what is refused."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file, save_file
from transformers import AutoModelForSeq2SeqLM, AutoTokenizer

from ragstone.commands.finetune import FinetuneSettings, finetune
from ragstone.errors import InputError
from ragstone.model.checkpoint import load_checkpoint
from ragstone.model.decoding import Decoding
from ragstone.model.generator_request import GeneratorRequest
from ragstone.model.languages import Languages, set_languages
from ragstone.model.lora import LoraSettings
from ragstone.model.open import ModelRequest, open_model
from tests.conftest import join_models
from tests.model.families import FAMILIES, open_family

SPEAKERS = {name: family for name, family in FAMILIES.items() if family.languages.target is not None}


def test_there_are_generators_of_several_languages() -> None:
    assert len(SPEAKERS) == 4


@pytest.mark.parametrize("name", SPEAKERS)
def test_the_native_convention(name: str, family_folder: Callable[[str], Path]) -> None:
    """Passages carry one code, answers the other; generation starts from it or has to begin with it."""
    generator = open_family(name, family_folder(name))
    tokenizer, settings = generator.tokenizer, generator.model.generation_config
    source = tokenizer("a b")["input_ids"]
    target = generator.tokenize_targets(["a b"], 25)[0].tolist()
    codes = tokenizer.convert_ids_to_tokens([next(label for label in ids if label > 6) for ids in (source, target)])
    spelled = (SPEAKERS[name].languages.source, SPEAKERS[name].languages.target)
    assert tuple(code.strip("_") for code in codes) == spelled
    assert generator.text(target) == "a b"
    if SPEAKERS[name].opening is None:
        assert target[-2:] == [2, settings.decoder_start_token_id]
        assert settings.forced_bos_token_id is None
    else:
        assert target[0] == settings.forced_bos_token_id and target[-1] == 2
        assert settings.decoder_start_token_id == 2
        assert generator.is_preamble(target[0]) and not generator.is_preamble(target[1])


@pytest.mark.parametrize("name", SPEAKERS)
def test_a_checkpoint_keeps_its_languages(
    name: str, family_folder: Callable[[str], Path], models_folder: Path, source_folder: Path, tmp_path: Path
) -> None:
    """Joined with --src_lang and --tgt_lang, opened, saved and opened again without."""
    languages = SPEAKERS[name].languages
    join_models(
        family_folder(name),
        models_folder / "question_encoder",
        tmp_path / "rag",
        src_lang=languages.source,
        tgt_lang=languages.target,
    )
    model: Any = open_model(ModelRequest(str(tmp_path / "rag"), passages_path=str(source_folder), n_docs=2))
    model.save(tmp_path / "again")
    again: Any = open_model(ModelRequest(str(tmp_path / "again")))
    for opened in (model, again):
        tokenizer = opened.generator.tokenizer
        assert (tokenizer.src_lang, tokenizer.tgt_lang) == (languages.source, languages.target)
    kept = ("forced_bos_token_id", "decoder_start_token_id")
    settings = [opened.generator.model.generation_config for opened in (model, again)]
    assert [getattr(settings[0], key) for key in kept] == [getattr(settings[1], key) for key in kept]
    decoding = Decoding(max_length=6)
    assert again.generate(["a b"], decoding) == model.generate(["a b"], decoding)


def test_closed_book(family_folder: Callable[[str], Path], tmp_path: Path) -> None:
    folder, languages = str(family_folder("mBART")), SPEAKERS["mBART"].languages
    with pytest.raises(InputError, match="nothing says which; give --src_lang and --tgt_lang to ragstone consolidate"):
        open_model(ModelRequest(folder))
    model: Any = open_model(ModelRequest(folder, languages=languages))
    model.save(tmp_path / "model")
    again: Any = open_model(ModelRequest(str(tmp_path / "model")))
    assert again.generator._start_token() == model.generator._start_token() == 28
    assert again(["a"], ["b c"]).nll == model(["a"], ["b c"]).nll


def test_other_languages_than_recorded(
    family_folder: Callable[[str], Path], models_folder: Path, tmp_path: Path
) -> None:
    folder = join_models(
        family_folder("mBART-50"),
        models_folder / "question_encoder",
        tmp_path / "rag",
        src_lang="en_XX",
        tgt_lang="ro_RO",
    )
    checkpoint = load_checkpoint(str(folder), request=GeneratorRequest(languages=Languages(target="fr_XX")))
    tokenizer = checkpoint.generator.tokenizer
    assert (tokenizer.src_lang, tokenizer.tgt_lang) == ("en_XX", "fr_XX")
    opening = checkpoint.generator.model.generation_config.forced_bos_token_id
    assert tokenizer.convert_ids_to_tokens(opening) == "fr_XX"


def test_adapters_are_trained_on_in_another_language(
    family_folder: Callable[[str], Path], models_folder: Path, source_folder: Path, tmp_path: Path
) -> None:
    """What the generator begins with is none of its weights, which alone must be those that they were made for."""
    encoder, spoken = models_folder / "question_encoder", {"src_lang": "en_XX", "tgt_lang": "ro_RO"}
    base, lora = join_models(family_folder("mBART-50"), encoder, tmp_path / "rag", **spoken), LoraSettings(2, 4)
    request = ModelRequest(str(base), passages_path=str(source_folder), n_docs=2, lora=lora)
    open_model(request).save(tmp_path / "romanian")
    french = dataclasses.replace(request, name_or_path=str(tmp_path / "romanian"), languages=Languages(target="fr_XX"))
    open_model(french).save(tmp_path / "french")
    for name, code in (("romanian", "ro_RO"), ("french", "fr_XX")):
        generator: Any = load_checkpoint(str(tmp_path / name)).generator
        opening = generator.model.generation_config.forced_bos_token_id
        assert generator.tokenizer.convert_ids_to_tokens(opening) == code
        assert generator.tokenize_targets(["a"], 25)[0, 0] == opening
    weights = load_file(base / "model.safetensors")
    name = next(name for name in weights if name.endswith("fc1.weight"))
    save_file({**weights, name: weights[name] + 1}, base / "model.safetensors", {"format": "pt"})
    for folder in ("romanian", "french"):
        with pytest.raises(InputError, match="which has changed since they were made"):
            load_checkpoint(str(tmp_path / folder))


@pytest.mark.parametrize(
    ("name", "languages", "message"),
    [
        ("mBART", Languages(), r"mBART reads and writes several languages.*each one of ar_AR, cs_CZ.*, \.\.\.\.$"),
        ("mBART", Languages(source="en_XX"), "nothing says which"),
        ("mBART-50", Languages("en_XX", "ro_R0"), "--tgt_lang is 'ro_R0', which mBART-50 does not know.*ro_RO"),
        ("M2M100", Languages("__en__", "ro"), "--src_lang is '__en__', which M2M100 does not know"),
        ("NLLB", Languages("en", "ron_Latn"), "take one of eng_Latn"),
        ("T5", Languages(target="ro"), "--tgt_lang is 'ro', but the tokenizer of T5 has no language codes"),
    ],
)
def test_refusals(name: str, languages: Languages, message: str, family_folder: Callable[[str], Path]) -> None:
    folder = family_folder(name)
    model, tokenizer = AutoModelForSeq2SeqLM.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
    with pytest.raises(InputError, match=message):
        set_languages(model, tokenizer, languages, name)


def test_finetune_a_generator_alone(family_folder: Callable[[str], Path], pairs_folder: Path, tmp_path: Path) -> None:
    """The flags, a prefix and gradient checkpointing; what is saved opens again without them."""
    settings = {
        "data_dir": pairs_folder,
        "model_name_or_path": str(family_folder("mBART-50")),
        "src_lang": "en_XX",
        "tgt_lang": "ro_RO",
        "prefix": "a ",
        "max_source_length": 20,
        "gradient_checkpointing": True,
        "max_steps": 1,
        "n_train": 4,
        "n_val": 2,
    }
    finetune(FinetuneSettings(output_dir=tmp_path / "run", **settings))
    model: Any = open_model(ModelRequest(str(tmp_path / "run" / "best")))
    assert model.context.prefix == "a "
    tokenizer = model.generator.tokenizer
    assert (tokenizer.src_lang, tokenizer.tgt_lang) == ("en_XX", "ro_RO")
    (answers,) = model.generate(["b"], Decoding(max_length=6))
    assert tokenizer.convert_ids_to_tokens(answers[0].labels[0]) == "ro_RO"
