"""Opening and saving text encoders: DPR folders, sentence-transformers folders, any AutoModel."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any, Literal

from ragstone.encoders.pooling import POOLINGS, Pooling
from ragstone.encoders.text_encoder import EncoderSettings, TextEncoder
from ragstone.errors import InputError

Side = Literal["question", "passage"]
PROMPT_NAMES: dict[Side, tuple[str, ...]] = {
    "question": ("query", "question"),
    "passage": ("passage", "document", "corpus"),
}


def load_encoder(
    name_or_path: str,
    side: Side,
    *,
    pooling: Pooling | None = None,
    normalize: bool | None = None,
    prompt: str | None = None,
    tokenizer_name_or_path: str | None = None,
    cache_dir: str | None = None,
    allow_new_weights: bool = False,
) -> TextEncoder:
    """Open a text encoder from a folder or the hub.

    DPR models use their pooler output. A sentence-transformers folder says itself how it pools, normalises and
    prompts. Any other AutoModel takes `pooling` (default "cls") and `normalize` (default no).

    Raises:
        InputError: neither a folder nor reachable, no encoder, or weights missing and `allow_new_weights` is false.
    """
    from transformers import AutoConfig, AutoTokenizer

    folder = Path(name_or_path)
    config = pretrained(AutoConfig, name_or_path, "config.json", cache_dir=cache_dir)
    settings = recorded_settings(folder, config, side)
    settings = dataclasses.replace(
        settings,
        pooling=settings.pooling if pooling is None else pooling,
        normalize=settings.normalize if normalize is None else normalize,
        prompt=settings.prompt if prompt is None else prompt,
    )
    tokenizer = pretrained(AutoTokenizer, tokenizer_name_or_path or name_or_path, "tokenizer", cache_dir=cache_dir)
    limits = (settings.max_length, getattr(config, "max_position_embeddings", None), tokenizer.model_max_length)
    settings = dataclasses.replace(settings, max_length=min(limit for limit in limits if limit))
    model, report = pretrained(
        _model_class(config), name_or_path, "encoder weights", cache_dir=cache_dir, output_loading_info=True
    )
    refuse_new_weights(name_or_path, _needed(report["missing_keys"], settings), allow_new_weights)
    return TextEncoder(model.float().eval(), tokenizer, settings, name_or_path)


def save_encoder(encoder: TextEncoder, folder: Path) -> None:
    """Write a folder that `load_encoder` opens; unless it is a DPR model, sentence-transformers opens it too."""
    encoder.model.save_pretrained(folder)
    encoder.tokenizer.save_pretrained(folder)
    settings = encoder.settings
    if settings.pooling == "pooler":
        return
    modules = ["Transformer", "Pooling", *(["Normalize"] if settings.normalize else [])]
    paths = ["" if i == 0 else f"{i}_{name}" for i, name in enumerate(modules)]
    entries = [
        {"idx": i, "name": str(i), "path": path, "type": f"sentence_transformers.models.{name}"}
        for i, (name, path) in enumerate(zip(modules, paths, strict=True))
    ]
    pooling = {
        "word_embedding_dimension": encoder.dimension,
        "pooling_mode_cls_token": settings.pooling == "cls",
        "pooling_mode_mean_tokens": settings.pooling == "mean",
        "pooling_mode_lasttoken": settings.pooling == "last",
    }
    for path in paths[1:]:
        (folder / path).mkdir(exist_ok=True)
    _write_json(folder / "modules.json", entries)
    _write_json(folder / paths[1] / "config.json", pooling)
    _write_json(folder / "sentence_bert_config.json", {"max_seq_length": settings.max_length, "do_lower_case": False})
    prompts = {name: settings.prompt for names in PROMPT_NAMES.values() for name in names[:1]}
    _write_json(folder / "config_sentence_transformers.json", {"prompts": prompts if settings.prompt else {}})


def refuse_new_weights(name: str, missing: list[str], allowed: bool) -> None:
    """Refuse a model some of whose weights would be newly initialised.

    Raises:
        InputError: names the model and the first missing weights.
    """
    if missing and not allowed:
        listed = ", ".join(missing[:3]) + (", ..." if len(missing) > 3 else "")
        raise InputError(
            f"{name} lacks {len(missing)} of the weights its architecture needs ({listed}); take a model that has "
            "them, or accept newly initialised ones with --allow_new_weights."
        )


def _model_class(config: Any) -> Any:
    from transformers import AutoModel, DPRContextEncoder, DPRQuestionEncoder

    if config.model_type != "dpr":
        return AutoModel
    architectures = config.architectures or []
    return DPRContextEncoder if "DPRContextEncoder" in architectures else DPRQuestionEncoder


def recorded_settings(folder: Path, config: Any, side: Side) -> EncoderSettings:
    """What the model itself says of its pooling, normalisation, prompt and length."""
    if config.model_type == "dpr":
        return EncoderSettings(pooling="pooler", max_length=512)
    if not (folder / "modules.json").is_file():
        return EncoderSettings()
    modules = [module["type"].rsplit(".", 1)[-1] for module in _read_json(folder / "modules.json")]
    unknown = set(modules) - {"Transformer", "Pooling", "Normalize"}
    if unknown:
        raise InputError(f"{folder / 'modules.json'} names {sorted(unknown)}, which Ragstone cannot apply.")
    pooling_path = next(folder.glob("*_Pooling/config.json"), None)
    pooling = _pooling_of(pooling_path) if pooling_path else "mean"
    sentence = _read_json(folder / "sentence_bert_config.json")
    prompts = _read_json(folder / "config_sentence_transformers.json").get("prompts") or {}
    prompt = next((prompts[name] for name in PROMPT_NAMES[side] if prompts.get(name)), "")
    return EncoderSettings(
        pooling=pooling,
        normalize="Normalize" in modules,
        prompt=prompt,
        max_length=sentence.get("max_seq_length") or 512,
        pair=False,
    )


def _pooling_of(path: Path) -> Pooling:
    config = _read_json(path)
    if config.get("pooling_mode") in POOLINGS:
        return config["pooling_mode"]
    names: dict[str, Pooling] = {
        "pooling_mode_cls_token": "cls",
        "pooling_mode_mean_tokens": "mean",
        "pooling_mode_lasttoken": "last",
    }
    chosen = [key for key, value in config.items() if key.startswith("pooling_mode_") and value]
    if len(chosen) != 1 or chosen[0] not in names:
        raise InputError(f"{path} asks for the pooling {chosen}; Ragstone knows one of {sorted(names)}.")
    return names[chosen[0]]


def _needed(missing: Any, settings: EncoderSettings) -> list[str]:
    """The missing weights that this pooling uses."""
    return sorted(key for key in missing if settings.pooling == "pooler" or not key.startswith("pooler."))


def pretrained(factory: Any, name_or_path: str, what: str, **options: Any) -> Any:
    """`factory.from_pretrained`, with its many failures told in one sentence.

    Raises:
        InputError: names the model and the reason.
    """
    try:
        return factory.from_pretrained(name_or_path, **options)
    except (OSError, ValueError, ImportError, KeyError) as error:
        if not Path(name_or_path).exists():
            raise InputError(
                f"{name_or_path!r} is neither a folder nor a model that can be reached on the hub; "
                "check the spelling, or download the model and give its folder."
            ) from error
        reason = " ".join(str(error).split())
        raise InputError(f"The {what} in {name_or_path} cannot be read: {reason[:300]}") from error


def _read_json(path: Path) -> Any:
    if not path.is_file():
        return {}
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise InputError(f"{path} is not JSON: {error}.") from error


def _write_json(path: Path, value: Any) -> None:
    path.write_text(json.dumps(value, indent=2) + "\n", encoding="utf-8")
