"""What a model itself says of its vectors: sentence-transformers folders of pooling, normalisation, prompts, length."""

from __future__ import annotations

from typing import Any, Literal

from ragstone.encoders.files import find_file, read_json
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
        return {} if name_or_path is None else _read(name_or_path, file_name, cache_dir)

    modules = _modules(recorded("modules.json"), str(name_or_path))
    if not modules:
        return EncoderSettings()
    kinds = dict(modules)
    pooling = recorded(f"{kinds['Pooling']}/config.json") if "Pooling" in kinds else {}
    prompt = _prompt(recorded("config_sentence_transformers.json"), side, str(name_or_path))
    if prompt and pooling.get("include_prompt") is False:
        raise InputError(
            f"{name_or_path} leaves its prompt out of the pooling, which Ragstone cannot apply; take another encoder."
        )
    transformer = recorded("sentence_bert_config.json")
    return EncoderSettings(
        pooling=_pooling_of(pooling, str(name_or_path)) if pooling else "mean",
        normalize="Normalize" in kinds,
        prompt=prompt,
        max_length=transformer.get("max_seq_length") or UNLIMITED,
    )


def dense_paths(name_or_path: str, cache_dir: str | None = None) -> list[str]:
    """Where a sentence-transformers model has Dense modules, in the order in which they are applied."""
    modules = _modules(_read(name_or_path, "modules.json", cache_dir), name_or_path)
    return [path for kind, path in modules if kind == "Dense"]


def is_sentence_transformers(name_or_path: str, cache_dir: str | None = None) -> bool:
    """Whether a model is of sentence-transformers' kind, which says how it encodes both sides."""
    return bool(_read(name_or_path, "modules.json", cache_dir))


def wants_lower_case(name_or_path: str, cache_dir: str | None = None) -> bool:
    """Whether a sentence-transformers model wants its text in lower case."""
    return bool(_read(name_or_path, "sentence_bert_config.json", cache_dir).get("do_lower_case"))


def _modules(entries: Any, name: str) -> list[tuple[str, str]]:
    """Kind and folder of each module that modules.json names, in order.

    Raises:
        InputError: a kind, or an order of them, that Ragstone cannot apply.
    """
    modules = [(entry["type"].rsplit(".", 1)[-1], entry["path"]) for entry in entries]
    kinds = [kind for kind, _ in modules]
    unknown = set(kinds) - {"Transformer", "Pooling", "Dense", "Normalize"}
    if unknown:
        raise InputError(
            f"{name} has the modules {sorted(unknown)}, which Ragstone cannot apply; take another encoder."
        )
    if "Normalize" in kinds and "Dense" in kinds[kinds.index("Normalize") :]:
        raise InputError(f"{name} normalises before a Dense module, which Ragstone cannot apply; take another encoder.")
    return modules


def _prompt(config: Any, side: Side, name: str) -> str:
    """The prompt of a side; the default one of the model where it has none of that side, not even an empty one."""
    prompts, default = config.get("prompts") or {}, config.get("default_prompt_name")
    own = [prompts[key] for key in PROMPT_NAMES[side] if key in prompts]
    if own or default is None:
        return next((prompt for prompt in own if prompt), "")
    if default not in prompts:
        raise InputError(
            f"{name} names the default prompt {default!r}, but has none of that name; correct "
            "config_sentence_transformers.json in it."
        )
    return prompts[default] or ""


def _pooling_of(config: Any, name: str) -> Pooling:
    """The pooling that a Pooling module's config names: as a word since sentence-transformers 6, before by switches."""
    mode = config.get("pooling_mode")
    modes = [mode] if isinstance(mode, str) else mode or []
    chosen = modes or [key for key, value in config.items() if key.startswith("pooling_mode_") and value]
    if len(chosen) != 1 or chosen[0] not in POOLING_NAMES:
        raise InputError(
            f"{name} asks for the pooling {chosen}, but Ragstone knows only one of {sorted(POOLING_NAMES)}; take "
            "another encoder."
        )
    return POOLING_NAMES[chosen[0]]


def _read(name_or_path: str, file_name: str, cache_dir: str | None) -> Any:
    """A JSON file of a model; an empty object where the model has no such file."""
    path = find_file(name_or_path, file_name, cache_dir)
    return {} if path is None else read_json(path)
