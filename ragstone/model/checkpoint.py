"""RAG checkpoints on disk, in the layout of transformers' Rag* classes.

config.json (model_type "rag"), model.safetensors with rag.question_encoder.* and rag.generator.*, and the folders
question_encoder_tokenizer/ and generator_tokenizer/. What Ragstone needs besides stands under the key "ragstone" of
config.json, which transformers keeps and ignores.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ragstone.encoders.dense import read_dense, save_dense
from ragstone.encoders.files import find_file
from ragstone.encoders.load import pretrained, pretrained_tokenizer, refuse_new_weights
from ragstone.encoders.record import EncoderRecord
from ragstone.encoders.recorded import recorded_settings
from ragstone.encoders.text_encoder import EncoderSettings, TextEncoder
from ragstone.errors import InputError
from ragstone.model.architecture import as_generator, auto_class, choose_prompt
from ragstone.model.contexts import ContextFormat
from ragstone.model.encoder_weights import load_encoder_weights, save_encoder_weights
from ragstone.model.fingerprint import NOT_SETTINGS, fingerprint
from ragstone.model.generator import Generator
from ragstone.model.generator_request import GeneratorRequest, spare_odd_layers
from ragstone.model.holder import Holder
from ragstone.model.languages import Languages, set_languages
from ragstone.model.lora import load_adapters
from ragstone.model.model_type import RagType
from ragstone.model.prompt import PromptSettings

ADAPTER = "generator_adapter"
"""Folder of a checkpoint that holds a generator's adapters, as peft saves them."""
DENSE = "question_encoder_dense"
"""Folder of a checkpoint whose question encoder has Dense modules, one in each folder 0, 1, ... within."""
QUESTION_ENCODER = "rag.question_encoder"
ARCHITECTURES: dict[RagType, str] = {
    "rag_sequence": "RagSequenceForGeneration",
    "rag_token": "RagTokenForGeneration",
}


@dataclass
class Checkpoint:
    """The parts of a RAG checkpoint."""

    config: Any
    """transformers' RagConfig."""
    question_encoder: TextEncoder
    generator: Generator[Any]
    adapter_base: str | None = None
    """Where the generator is whole, if its adapters alone are trained and saved: a RAG checkpoint's folder or name."""

    @property
    def model_type(self) -> RagType:
        architectures = self.config.architectures or []
        return "rag_token" if ARCHITECTURES["rag_token"] in architectures else "rag_sequence"

    @property
    def context(self) -> ContextFormat:
        config = self.config
        prefix = getattr(config.generator, "prefix", None) or config.prefix or ""
        own = own_settings(config)
        return ContextFormat(
            config.title_sep,
            config.doc_sep,
            prefix,
            config.max_combined_length,
            template=(own.get("prompt") or {}).get("template"),
            decoded_question=own.get("decoded_question", False),
        )

    @property
    def passage_encoder(self) -> EncoderRecord | None:
        """The passage encoder that the question encoder belongs to; None where the checkpoint does not know."""
        return EncoderRecord.read(own_settings(self.config).get("passage_encoder"))

    @property
    def question_encoder_origin(self) -> EncoderRecord | None:
        """The question encoder before it was fine-tuned, with what a source of the same model must agree to.

        Recorded where the passage encoder is not known, see model.consolidate.
        """
        return EncoderRecord.read(own_settings(self.config).get("question_encoder_origin"))


def own_settings(config: Any) -> dict[str, Any]:
    """What Ragstone recorded in a config: empty in a checkpoint that transformers wrote."""
    return getattr(config, "ragstone", None) or {}


def record_own(config: Any, **settings: Any) -> None:
    """Record some more, or others, of what own_settings gives."""
    config.ragstone = {**own_settings(config), **settings}


def keep_own(config: Any, names: Collection[str]) -> None:
    """Keep only these of what own_settings gives."""
    config.ragstone = {name: value for name, value in own_settings(config).items() if name in names}


def load_checkpoint(
    name_or_path: str,
    *,
    cache_dir: str | None = None,
    config_name: str | None = None,
    request: GeneratorRequest | None = None,
) -> Checkpoint:
    """Open a RAG checkpoint from a folder or the hub, as safetensors or as pickled weights read with weights_only.

    Args:
        name_or_path: folder or hub name.
        cache_dir: where downloads are kept.
        config_name: where config.json is, if not with the weights.
        request: what to change about the generator.

    Raises:
        InputError: no RAG checkpoint, one that lacks weights, or whose generator cannot be what is wished for.
    """
    from transformers import AutoConfig

    config = pretrained(AutoConfig, config_name or name_or_path, "config.json", cache_dir=cache_dir)
    if config.model_type != "rag":
        raise InputError(
            f"{name_or_path} is a {config.model_type} model, not a RAG checkpoint; join a question encoder and a "
            "generator with ragstone consolidate."
        )
    own = own_settings(config)
    # Without settings of ours, transformers wrote it. Kept from now on, whatever is recorded besides.
    record_own(config, decoded_question=own.get("decoded_question", not own))
    request = request or GeneratorRequest()
    base = own.get("adapter_base")
    if base is not None:
        return _load_adapted(name_or_path, config, base, cache_dir, request)
    auto_class(config.generator, f"The generator in {name_or_path}")
    change_config(config.generator, request.changes)
    for part in (config, config.question_encoder, config.generator):
        # Releases of 2020 recorded that models return tuples, which today's break on within.
        part.return_dict = True
    holder, report = pretrained(
        Holder,
        name_or_path,
        "weights",
        config=config,
        output_loading_info=True,
        cache_dir=cache_dir,
        **request.loading_options(QUESTION_ENCODER),
    )
    settings = _encoder_settings(config)
    missing = [key for key in report["missing_keys"] if settings.pooling == "pooler" or ".pooler." not in key]
    refuse_new_weights(name_or_path, sorted(missing), allowed=None)
    tokenizers = {}
    for part in ("question_encoder", "generator"):
        # Older checkpoints' tokenizers do not say of which class they are; it follows from the model that they are for.
        options = {"subfolder": f"{part}_tokenizer", "cache_dir": cache_dir, "config": getattr(config, part)}
        tokenizers[part] = pretrained_tokenizer(name_or_path, f"{part} tokenizer", **options)
    generator = holder.rag.generator
    generation = own_settings(config).get("generation")
    if generation:
        generator.generation_config.update(**generation)
    set_languages(generator, tokenizers["generator"], request.languages, name_or_path)
    encoder = TextEncoder(holder.rag.question_encoder, tokenizers["question_encoder"], settings, name_or_path)
    _read_dense(encoder, config, cache_dir)
    recorded = own_settings(config).get("prompt")
    prompt = choose_prompt(generator.config, tokenizers["generator"], recorded, request.prompt_template, request.chat)
    record_prompt(config, prompt)
    if request.quantization is None:
        generator.to(request.weight_type)
    else:
        # transformers tells the holder alone; peft asks the generator. What is written is not quantised.
        for name in ("is_loaded_in_8bit", "is_loaded_in_4bit"):
            setattr(generator, name, getattr(holder, name, False))
        spare_odd_layers(generator)
        for part in (holder.config, config, config.generator):
            vars(part).pop("quantization_config", None)
    return Checkpoint(config, encoder, as_generator(generator, tokenizers["generator"], prompt))


def record_prompt(config: Any, prompt: PromptSettings | None) -> None:
    """Put a decoder-only generator's prompt into a config."""
    if prompt is not None:
        record_own(config, prompt=dataclasses.asdict(prompt))


def record_base(config: Any, generator: Any, request: GeneratorRequest) -> None:
    """Record what a generator is that adapters are made for; nothing where its weights are not those on the disk."""
    record_own(config, adapter_base_fingerprint=fingerprint(generator) if request.keeps_weights else None)


def _load_adapted(
    name_or_path: str,
    config: Any,
    base: str,
    cache_dir: str | None,
    request: GeneratorRequest,
) -> Checkpoint:
    """A checkpoint of a question encoder and adapters, over the generator of the checkpoint that they were made for."""
    if not Path(name_or_path).is_dir():
        raise InputError(f"{name_or_path} holds adapters only; download it and give its folder.")
    own, folder = own_settings(config), Path(name_or_path)
    tokenizer = pretrained_tokenizer(name_or_path, "generator tokenizer", subfolder="generator_tokenizer")
    # What it was trained with goes before what its base says, and is in the fingerprint. A request goes before both.
    trained = Languages(getattr(tokenizer, "src_lang", None), getattr(tokenizer, "tgt_lang", None))
    try:
        whole = load_checkpoint(base, cache_dir=cache_dir, request=dataclasses.replace(request, languages=trained))
    except InputError as error:
        raise InputError(f"{name_or_path} holds adapters for the generator of {base}: {error}") from error
    generator = whole.generator.model
    expected = own.get("adapter_base_fingerprint")
    if expected is not None and request.keeps_weights and fingerprint(generator) != expected:
        raise InputError(
            f"{name_or_path} holds adapters for the generator of {base}, which has changed since they were made; put "
            "it back, or train them again."
        )
    set_languages(generator, tokenizer, request.languages, name_or_path)
    if request.languages.target not in (None, trained.target):
        record_base(config, generator, request)
    prompt = choose_prompt(generator.config, tokenizer, own.get("prompt"), request.prompt_template, request.chat)
    record_prompt(config, prompt)
    adapted = as_generator(generator, tokenizer, prompt)
    adapted.model = load_adapters(generator, folder / ADAPTER)
    model = whole.question_encoder.model
    load_encoder_weights(model, folder)
    encoder = TextEncoder(model, whole.question_encoder.tokenizer, _encoder_settings(config), name_or_path)
    _read_dense(encoder, config, cache_dir)
    return Checkpoint(config, encoder, adapted, adapter_base=base)


def change_config(config: Any, changes: Mapping[str, Any]) -> None:
    """Set entries of a generator's config; what BART calls dropout, T5 calls dropout_rate.

    Raises:
        InputError: the generator has no such setting.
    """
    for name, value in changes.items():
        own = next((known for known in (name, f"{name}_rate") if hasattr(config, known)), None)
        if own is None:
            raise InputError(f"A {config.model_type} generator has no setting {name}; leave --{name} out.")
        setattr(config, own, value)


def save_checkpoint(checkpoint: Checkpoint, folder: Path, model_type: RagType) -> None:
    """Write a RAG checkpoint into `folder`, which transformers' class for `model_type` opens."""
    encoder, generator = checkpoint.question_encoder, checkpoint.generator
    config = checkpoint.config
    config.question_encoder, config.generator = encoder.model.config, generator.model.config
    config.architectures = [ARCHITECTURES[model_type]]
    record_own(
        config,
        question_encoder=dataclasses.asdict(encoder.settings),
        **{DENSE: len(encoder.dense or ())},
        generation=_plain_generation(generator.model.generation_config),
    )
    if checkpoint.adapter_base is None:
        Holder(config, encoder.model, generator.model).save_pretrained(folder)
        # save_pretrained puts its own class there.
        config.architectures = [ARCHITECTURES[model_type]]
        config.save_pretrained(folder)
    else:
        _save_adapted(checkpoint, folder)
    for number, module in enumerate(encoder.dense or ()):
        save_dense(module, folder / DENSE / str(number))
    encoder.tokenizer.save_pretrained(folder / "question_encoder_tokenizer")
    generator.tokenizer.save_pretrained(folder / "generator_tokenizer")


def _save_adapted(checkpoint: Checkpoint, folder: Path) -> None:
    """The question encoder and the adapters; the generator stays where it is whole."""
    record_own(checkpoint.config, adapter_base=checkpoint.adapter_base)
    checkpoint.config.save_pretrained(folder)
    save_encoder_weights(checkpoint.question_encoder.model, folder)
    checkpoint.generator.model.save_pretrained(folder / ADAPTER)


def _read_dense(encoder: TextEncoder, config: Any, cache_dir: str | None) -> None:
    """Put the Dense modules of a checkpoint behind its question encoder, which has its name."""
    name = encoder.name
    paths = [f"{DENSE}/{number}" for number in range(own_settings(config).get(DENSE, 0))]
    encoder.dense = read_dense(lambda file: find_file(name, file, cache_dir), paths, name, encoder.width)


def _encoder_settings(config: Any) -> EncoderSettings:
    recorded = own_settings(config).get("question_encoder")
    if recorded:
        return EncoderSettings(**recorded)
    settings = recorded_settings(config.question_encoder, "question")
    length = getattr(config.question_encoder, "max_position_embeddings", settings.max_length)
    return dataclasses.replace(settings, max_length=min(settings.max_length, length))


def _plain_generation(generation_config: Any) -> dict[str, Any]:
    """The generator's own generation settings, which transformers' RAG classes would lose."""
    values = json.loads(generation_config.to_json_string(use_diff=True))
    return {key: value for key, value in values.items() if key not in NOT_SETTINGS}
