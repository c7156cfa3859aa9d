"""RAG checkpoints on disk, in the layout of transformers' Rag* classes.

config.json (model_type "rag"), model.safetensors with rag.question_encoder.* and rag.generator.*, and the folders
question_encoder_tokenizer/ and generator_tokenizer/. What Ragstone needs besides stands under the key "ragstone" of
config.json, which transformers keeps and ignores.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ragstone.encoders.load import pretrained, pretrained_tokenizer, recorded_settings, refuse_new_weights
from ragstone.encoders.text_encoder import EncoderSettings, TextEncoder
from ragstone.errors import InputError
from ragstone.model.contexts import ContextFormat
from ragstone.model.rag import RagType
from ragstone.model.seq2seq import Seq2SeqGenerator, refuse_decoder_only

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
    generator: Seq2SeqGenerator

    @property
    def model_type(self) -> RagType:
        architectures = self.config.architectures or []
        return "rag_token" if ARCHITECTURES["rag_token"] in architectures else "rag_sequence"

    @property
    def context(self) -> ContextFormat:
        config = self.config
        prefix = getattr(config.generator, "prefix", None) or config.prefix or ""
        return ContextFormat(config.title_sep, config.doc_sep, prefix, config.max_combined_length)

    @property
    def passage_encoder_fingerprint(self) -> str | None:
        """Of the passage encoder that the question encoder belongs to; None where the checkpoint does not know."""
        return own_settings(self.config).get("passage_encoder_fingerprint")


def own_settings(config: Any) -> dict[str, Any]:
    """What Ragstone recorded in a config: empty in a checkpoint that transformers wrote."""
    return getattr(config, "ragstone", None) or {}


def load_checkpoint(
    name_or_path: str,
    *,
    cache_dir: str | None = None,
    config_name: str | None = None,
    generator_changes: Mapping[str, Any] | None = None,
) -> Checkpoint:
    """Open a RAG checkpoint from a folder or the hub, as safetensors or as pickled weights read with weights_only.

    Args:
        name_or_path: folder or hub name.
        cache_dir: where downloads are kept.
        config_name: where config.json is, if not with the weights.
        generator_changes: entries of the generator's config to set (dropout, encoder_layerdrop, ...).

    Raises:
        InputError: no RAG checkpoint, or one that lacks weights.
    """
    from transformers import AutoConfig, RagSequenceForGeneration

    config = pretrained(AutoConfig, config_name or name_or_path, "config.json", cache_dir=cache_dir)
    if config.model_type != "rag":
        raise InputError(
            f"{name_or_path} is a {config.model_type} model, not a RAG checkpoint; join a question encoder and a "
            "generator with ragstone consolidate."
        )
    refuse_decoder_only(f"The generator in {name_or_path}", config.generator)
    change_config(config.generator, generator_changes or {})
    # Both model types have the same weights, so either class opens them.
    holder, report = pretrained(
        RagSequenceForGeneration, name_or_path, "weights", config=config, output_loading_info=True, cache_dir=cache_dir
    )
    settings = _encoder_settings(config)
    missing = [key for key in report["missing_keys"] if settings.pooling == "pooler" or ".pooler." not in key]
    refuse_new_weights(name_or_path, sorted(missing), allowed=False)
    tokenizers = {}
    for part in ("question_encoder", "generator"):
        # Older checkpoints' tokenizers do not say of which class they are; it follows from the model that they are for.
        options = {"subfolder": f"{part}_tokenizer", "cache_dir": cache_dir, "config": getattr(config, part)}
        tokenizers[part] = pretrained_tokenizer(name_or_path, f"{part} tokenizer", **options)
    generator = holder.rag.generator
    generation = own_settings(config).get("generation")
    if generation:
        generator.generation_config.update(**generation)
    encoder = TextEncoder(holder.rag.question_encoder, tokenizers["question_encoder"], settings, name_or_path)
    return Checkpoint(config, encoder, Seq2SeqGenerator(generator, tokenizers["generator"]))


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
    import transformers

    holder_class = getattr(transformers, ARCHITECTURES[model_type])
    encoder, generator = checkpoint.question_encoder, checkpoint.generator
    config = checkpoint.config
    config.question_encoder, config.generator = encoder.model.config, generator.model.config
    config.architectures = [ARCHITECTURES[model_type]]
    config.ragstone = {
        **own_settings(config),
        "question_encoder": dataclasses.asdict(encoder.settings),
        "generation": _plain_generation(generator.model.generation_config),
    }
    holder = holder_class(config=config, question_encoder=encoder.model, generator=generator.model)
    holder.save_pretrained(folder)
    encoder.tokenizer.save_pretrained(folder / "question_encoder_tokenizer")
    generator.tokenizer.save_pretrained(folder / "generator_tokenizer")


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
    return {key: value for key, value in values.items() if key not in ("transformers_version", "_from_model_config")}
