"""ragstone consolidate: a question encoder and a generator to one checkpoint (consolidate_rag_checkpoint.py)."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from ragstone.errors import InputError
from ragstone.importing import importing
from ragstone.model.model_type import RagType
from ragstone.output import new_folder
from ragstone.prompt_template import refuse_no_template
from ragstone.settings import save_settings


@dataclass(frozen=True)
class ConsolidateSettings:
    dest: Path
    """Folder for the checkpoint; new or empty."""
    model_type: RagType | None = None
    """How passages are marginalised: for the whole answer, or token by token."""
    generator_name_or_path: str | None = None
    """Generator: folder or hub name; sequence-to-sequence or decoder-only."""
    question_encoder_name_or_path: str | None = None
    """Question encoder: folder or hub name; DPR, sentence-transformers or any AutoModel."""
    generator_tokenizer_name_or_path: str | None = None
    """Tokenizer of the generator, if it is not with the generator."""
    question_encoder_tokenizer_name_or_path: str | None = None
    """Tokenizer of the question encoder, if it is not with the encoder."""
    config_name_or_path: str | None = None
    """A RAG config to start from; without it nothing but the two models is needed."""
    passage_encoder_name_or_path: str | None = None
    """The passage encoder that belongs to the question encoder, so that a source made by another one is refused."""
    pooling: Literal["cls", "mean", "last"] | None = None
    """How one vector is made from the tokens, if the question encoder does not say so itself; cls by default."""
    question_prompt: str | None = None
    """Text put before every question ("query: "); as the encoder says by default."""
    passage_pooling: Literal["cls", "mean", "last"] | None = None
    """--pooling that the source is built with, if the passage encoder does not say so itself."""
    passage_normalize: bool | None = None
    """--normalize or --no_normalize that the source is built with."""
    passage_prompt: str | None = None
    """--passage_prompt that the source is built with."""
    normalize: bool | None = None
    """Scale question vectors to length one; as the encoder says by default. Longer ones find the same passages,
    but tell them apart more sharply: the best one weighs more in the answer."""
    prompt_template: str | None = None
    """Prompt of a decoder-only generator, with {question} and {passage}, or {title} and {text}."""
    chat: bool | None = None
    """Put the generator's chat template around the prompt; by default, if it has one and no prompt is given."""
    merge_lora: str | None = None
    """Instead of two models: a checkpoint fine-tuned with --lora_r, whose adapters are merged into its weights."""
    src_lang: str | None = None
    """Language of passages and questions, for a multilingual generator: a code of its tokenizer (en_XX, eng_Latn)."""
    tgt_lang: str | None = None
    """Language of answers, for a multilingual generator."""
    allow_new_weights: bool = False
    """Accept a model some of whose weights are newly initialised."""

    def __post_init__(self) -> None:
        if self.prompt_template is not None:
            refuse_no_template(self.prompt_template)
        if self.merge_lora is None:
            needed = ("model_type", "generator_name_or_path", "question_encoder_name_or_path")
            missing = [f"--{name}" for name in needed if getattr(self, name) is None]
            if missing:
                raise InputError(f"{' and '.join(missing)} must be given.")
            return
        for field in dataclasses.fields(self):
            if field.name not in ("dest", "merge_lora") and getattr(self, field.name) != field.default:
                raise InputError(f"--merge_lora changes nothing but the generator's weights; leave --{field.name} out.")


@dataclass(frozen=True)
class Consolidated:
    """The new checkpoint."""

    folder: Path
    model_type: str
    tried: str
    """What it wrote when it was tried out."""


def consolidate(settings: ConsolidateSettings) -> Consolidated:
    """Join a question encoder and a generator into one RAG checkpoint."""
    with new_folder(settings.dest, "--dest") as folder:
        model_type, tried = _consolidate(settings, folder)
        save_settings(settings, folder / "settings.yaml")
    return Consolidated(settings.dest, model_type, tried)


def _consolidate(settings: ConsolidateSettings, folder: Path) -> tuple[str, str]:
    with importing():
        from ragstone.model.consolidate import ConsolidateParts, consolidate_checkpoint, merge_checkpoint
        from ragstone.model.languages import Languages

    if settings.merge_lora is not None:
        return merge_checkpoint(settings.merge_lora, folder)
    assert settings.model_type and settings.generator_name_or_path and settings.question_encoder_name_or_path
    parts = ConsolidateParts(
        question_encoder=settings.question_encoder_name_or_path,
        generator=settings.generator_name_or_path,
        question_encoder_tokenizer=settings.question_encoder_tokenizer_name_or_path,
        generator_tokenizer=settings.generator_tokenizer_name_or_path,
        config=settings.config_name_or_path,
        passage_encoder=settings.passage_encoder_name_or_path,
        pooling=settings.pooling,
        normalize=settings.normalize,
        question_prompt=settings.question_prompt,
        passage_pooling=settings.passage_pooling,
        passage_normalize=settings.passage_normalize,
        passage_prompt=settings.passage_prompt,
        allow_new_weights=settings.allow_new_weights,
        prompt_template=settings.prompt_template,
        chat=settings.chat,
        languages=Languages(settings.src_lang, settings.tgt_lang),
    )
    return settings.model_type, consolidate_checkpoint(parts, folder, settings.model_type)


def show(result: Consolidated) -> None:
    """Print where the checkpoint is."""
    print(f"checkpoint  {result.folder} ({result.model_type})")
    print(f"checked     loads back and generates; without a passage it wrote {result.tried!r}")
