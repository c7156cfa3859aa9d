"""Opening and saving text encoders: DPR folders, sentence-transformers folders, any AutoModel."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

from ragstone.encoders.dense import read_dense, save_dense
from ragstone.encoders.files import find_file, write_json
from ragstone.encoders.hub import hub_options
from ragstone.encoders.pooling import Pooling
from ragstone.encoders.recorded import PROMPT_NAMES, Side, dense_paths, recorded_settings, wants_lower_case
from ragstone.encoders.text_encoder import EncoderSettings, TextEncoder
from ragstone.errors import InputError, one_line
from ragstone.progress import activity

PASSAGE_ENCODER_KEY = "ragstone_passage_encoder"
"""Entry of an encoder's config.json: the EncoderRecord of the passage encoder that it was trained with."""


def load_encoder(
    name_or_path: str,
    side: Side,
    *,
    pooling: Pooling | None = None,
    normalize: bool | None = None,
    prompt: str | None = None,
    max_length: int | None = None,
    tokenizer_name_or_path: str | None = None,
    cache_dir: str | None = None,
    allow_new_weights: bool | None = None,
    pooling_remedy: str = "leave --pooling out",
) -> TextEncoder:
    """Open a text encoder from a folder or the hub.

    DPR models use their pooler output. A sentence-transformers folder says itself how it pools, normalises and
    prompts. Any other AutoModel takes `pooling` (default "cls") and `normalize` (default no). `max_length` tokens of a
    text are read, or as many as the model can. `allow_new_weights` is None where the user has no flag to allow them by,
    and `pooling_remedy` is what a user does who asked a DPR model for another pooling.

    Raises:
        InputError: neither a folder nor reachable, no encoder, another pooling than a DPR model's own, or weights
            missing and `allow_new_weights` is not true.
    """
    from transformers import AutoConfig

    config = pretrained(AutoConfig, name_or_path, "config.json", cache_dir=cache_dir)
    settings = recorded_settings(config, side, name_or_path, cache_dir)
    if settings.pooling == "pooler" and pooling not in (None, "pooler"):
        raise InputError(f"{name_or_path} is a DPR encoder, which pools in its own way; {pooling_remedy}.")
    settings = dataclasses.replace(
        settings,
        pooling=settings.pooling if pooling is None else pooling,
        normalize=settings.normalize if normalize is None else normalize,
        prompt=settings.prompt if prompt is None else prompt,
    )
    # A folder of words alone (vocab.txt) does not say what reads them; it follows from the model that they are for.
    tokenizer = pretrained_tokenizer(tokenizer_name_or_path or name_or_path, cache_dir=cache_dir, config=config)
    if wants_lower_case(name_or_path, cache_dir) and tokenizer.tokenize("ABCDEF") != tokenizer.tokenize("abcdef"):
        raise InputError(
            f"{name_or_path} wants lower-cased text, but its tokenizer does not make it so; save the model with a "
            "tokenizer that does."
        )
    if tokenizer.pad_token is None:
        # Decoder-only models have none. The attention mask hides padding, so any token will do.
        tokenizer.pad_token = tokenizer.eos_token
    positions = getattr(config, "max_position_embeddings", None)
    limits = (settings.max_length, positions, tokenizer.model_max_length, max_length)
    settings = dataclasses.replace(settings, max_length=min(limit for limit in limits if limit))
    # What DPR's folders know of the length stands with the tokenizer.
    tokenizer.model_max_length = settings.max_length
    model, report = pretrained(
        encoder_class(config), name_or_path, "encoder weights", cache_dir=cache_dir, output_loading_info=True
    )
    refuse_new_weights(name_or_path, _needed(report["missing_keys"], settings), allow_new_weights)
    encoder = TextEncoder(model.float().eval(), tokenizer, settings, name_or_path)
    if settings.pooling != "pooler":
        paths = dense_paths(name_or_path, cache_dir)
        encoder.dense = read_dense(
            lambda file: find_file(name_or_path, file, cache_dir), paths, name_or_path, encoder.width
        )
    if config.is_encoder_decoder:
        _refuse_asking_for_answers(encoder)
    return encoder


def save_encoder(encoder: TextEncoder, folder: Path) -> None:
    """Write a folder that `load_encoder` opens; unless it is a DPR model, sentence-transformers opens it too."""
    encoder.model.save_pretrained(folder)
    encoder.tokenizer.save_pretrained(folder)
    settings = encoder.settings
    if settings.pooling == "pooler":
        return
    dense: list[Any] = list(encoder.dense or ())
    modules = ["Transformer", "Pooling", *["Dense"] * len(dense), *(["Normalize"] if settings.normalize else [])]
    paths = ["" if i == 0 else f"{i}_{name}" for i, name in enumerate(modules)]
    entries = [
        {"idx": i, "name": str(i), "path": path, "type": f"sentence_transformers.models.{name}"}
        for i, (name, path) in enumerate(zip(modules, paths, strict=True))
    ]
    pooling = {
        "word_embedding_dimension": encoder.width,
        "pooling_mode_cls_token": settings.pooling == "cls",
        "pooling_mode_mean_tokens": settings.pooling == "mean",
        "pooling_mode_lasttoken": settings.pooling == "last",
    }
    for path in paths[1:]:
        (folder / path).mkdir(exist_ok=True)
    for module, path in zip(dense, paths[2:], strict=False):
        save_dense(module, folder / path)
    write_json(folder / "modules.json", entries)
    write_json(folder / paths[1] / "config.json", pooling)
    write_json(folder / "sentence_bert_config.json", {"max_seq_length": settings.max_length, "do_lower_case": False})
    prompts = {name: settings.prompt for names in PROMPT_NAMES.values() for name in names[:1]}
    write_json(folder / "config_sentence_transformers.json", {"prompts": prompts if settings.prompt else {}})


def refuse_new_weights(name: str, missing: list[str], allowed: bool | None) -> None:
    """Refuse a model some of whose weights would be newly initialised.

    Args:
        name: the model's.
        missing: names of the weights.
        allowed: whether the user allows them; None where there is no --allow_new_weights to do so.

    Raises:
        InputError: names the model and the first missing weights.
    """
    if missing and not allowed:
        listed = ", ".join(missing[:3]) + (", ..." if len(missing) > 3 else "")
        remedy = "save this one whole" if allowed is None else "accept newly initialised ones with --allow_new_weights"
        raise InputError(
            f"{name} lacks {len(missing)} of the weights its architecture needs ({listed}); take a model that has "
            f"them, or {remedy}."
        )


def encoder_class(config: Any) -> Any:
    """The class of transformers that reads text with a model of this config: of T5 and its like, the encoder alone."""
    from transformers import AutoModel, DPRContextEncoder, DPRQuestionEncoder
    from transformers.models.auto.modeling_auto import (
        MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING_NAMES,
        MODEL_FOR_TEXT_ENCODING_MAPPING,
    )

    if config.model_type == "dpr":
        architectures = config.architectures or []
        return DPRContextEncoder if "DPRContextEncoder" in architectures else DPRQuestionEncoder
    if config.model_type in MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING_NAMES:
        return MODEL_FOR_TEXT_ENCODING_MAPPING.get(type(config), AutoModel)
    return AutoModel


def _refuse_asking_for_answers(encoder: TextEncoder) -> None:
    """Refuse a sequence-to-sequence model that reads no text without the beginning of an answer to it.

    Raises:
        InputError: see above.
    """
    try:
        encoder.embed(["a"])
    except (ValueError, TypeError, AttributeError) as error:
        raise InputError(
            f"{encoder.name} is a {encoder.model.config.model_type} model, which makes no vector of a text alone; "
            "take an encoder, such as BERT, a sentence-transformers model or T5."
        ) from error


def _needed(missing: Any, settings: EncoderSettings) -> list[str]:
    """The missing weights that this pooling uses."""
    return sorted(key for key in missing if settings.pooling == "pooler" or not key.startswith("pooler."))


def pretrained(factory: Any, name_or_path: str, what: str, **options: Any) -> Any:
    """`factory.from_pretrained`, with its many failures told in one sentence.

    Raises:
        InputError: names the model and the reason.
    """
    try:
        with activity(f"Loading {name_or_path}"):
            return factory.from_pretrained(name_or_path, **hub_options(name_or_path), **options)
    except Exception as error:  # a damaged tokenizer.json raises no more special class
        if not Path(name_or_path).exists():
            raise InputError(
                f"{name_or_path!r} is neither a folder nor a model that can be reached on the hub; "
                "check the spelling, or download the model and give its folder."
            ) from error
        reason = one_line(error)
        raise InputError(f"The {what} in {name_or_path} cannot be read ({reason}); save it again.") from error


def pretrained_tokenizer(name_or_path: str, what: str = "tokenizer", **options: Any) -> Any:
    """AutoTokenizer.from_pretrained, which makes up a tokenizer without words where a folder has none of its files.

    Raises:
        InputError: names the model and the reason.
    """
    from transformers import AutoTokenizer

    tokenizer = pretrained(AutoTokenizer, name_or_path, what, **options)
    # SentencePiece's sign for a blank is all that T5's and mBART's have besides.
    if set(tokenizer.get_vocab()) <= {*tokenizer.all_special_tokens, "▁"}:
        raise InputError(f"The {what} in {name_or_path} cannot be read (it has no vocabulary); save it again.")
    return tokenizer
