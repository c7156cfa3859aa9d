"""What a model itself says of its vectors: sentence-transformers folders of pooling, normalisation, prompts, length."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Literal

from ragstone.encoders.hub import hub_options
from ragstone.encoders.pooling import Pooling
from ragstone.encoders.text_encoder import EncoderSettings
from ragstone.errors import InputError

Side = Literal["question", "passage"]
PROMPT_NAMES: dict[Side, tuple[str, ...]] = {
    "question": ("query", "question"),
    "passage": ("document", "passage", "corpus"),
}
POOLING_NAMES: dict[str, Pooling] = {
    "cls": "cls",
    "mean": "mean",
    "lasttoken": "last",
    "pooling_mode_cls_token": "cls",
    "pooling_mode_mean_tokens": "mean",
    "pooling_mode_lasttoken": "last",
}
"""What sentence-transformers calls the ways of pooling."""
UNLIMITED = 2**31 - 1
"""Tokens of a text where nothing but the model and its tokenizer sets a limit."""


def recorded_settings(
    config: Any, side: Side, name_or_path: str | None = None, cache_dir: str | None = None
) -> EncoderSettings:
    """What a model itself says of its pooling, normalisation, prompt and length.

    Args:
        config: the transformers config.
        side: whose prompt to take.
        name_or_path: where a sentence-transformers model keeps what it says; None where there is only the config.
        cache_dir: where downloads are kept.
    """
    if config.model_type == "dpr":
        return EncoderSettings(pooling="pooler", pair=True)

    def recorded(file_name: str) -> Any:
        return {} if name_or_path is None else _read_json(name_or_path, file_name, cache_dir)

    modules = {module["type"].rsplit(".", 1)[-1]: module["path"] for module in recorded("modules.json")}
    if not modules:
        return EncoderSettings()
    unknown = set(modules) - {"Transformer", "Pooling", "Normalize"}
    if unknown:
        raise InputError(f"{name_or_path} has the modules {sorted(unknown)}, which Ragstone cannot apply.")
    pooling = recorded(f"{modules['Pooling']}/config.json") if "Pooling" in modules else {}
    prompts = recorded("config_sentence_transformers.json").get("prompts") or {}
    prompt = next((prompts[name] for name in PROMPT_NAMES[side] if prompts.get(name)), "")
    if prompt and pooling.get("include_prompt") is False:
        raise InputError(f"{name_or_path} leaves its prompt out of the pooling, which Ragstone cannot apply.")
    transformer = recorded("sentence_bert_config.json")
    return EncoderSettings(
        pooling=_pooling_of(pooling, str(name_or_path)) if pooling else "mean",
        normalize="Normalize" in modules,
        prompt=prompt,
        max_length=transformer.get("max_seq_length") or UNLIMITED,
    )


def is_sentence_transformers(name_or_path: str, cache_dir: str | None = None) -> bool:
    """Whether a model is of sentence-transformers' kind, which says how it encodes both sides."""
    return bool(_read_json(name_or_path, "modules.json", cache_dir))


def wants_lower_case(name_or_path: str, cache_dir: str | None = None) -> bool:
    """Whether a sentence-transformers model wants its text in lower case."""
    return bool(_read_json(name_or_path, "sentence_bert_config.json", cache_dir).get("do_lower_case"))


def _pooling_of(config: Any, name: str) -> Pooling:
    """The pooling that a Pooling module's config names: as a word since sentence-transformers 6, before by switches."""
    mode = config.get("pooling_mode")
    modes = [mode] if isinstance(mode, str) else mode or []
    chosen = modes or [key for key, value in config.items() if key.startswith("pooling_mode_") and value]
    if len(chosen) != 1 or chosen[0] not in POOLING_NAMES:
        raise InputError(f"{name} asks for the pooling {chosen}; Ragstone knows one of {sorted(POOLING_NAMES)}.")
    return POOLING_NAMES[chosen[0]]


def _read_json(name_or_path: str, file_name: str, cache_dir: str | None) -> Any:
    """A JSON file of a model; an empty object where the model has no such file."""
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import EntryNotFoundError

    path = Path(name_or_path) / file_name
    if not Path(name_or_path).is_dir():
        try:
            path = Path(hf_hub_download(name_or_path, file_name, cache_dir=cache_dir, **hub_options(name_or_path)))
        except EntryNotFoundError:
            return {}
    if not path.is_file():
        return {}
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise InputError(f"{path} is not JSON: {error}.") from error
