"""ragstone consolidate: a question encoder and a generator to one checkpoint (consolidate_rag_checkpoint.py)."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from ragstone.output import new_folder
from ragstone.settings import save_settings


@dataclass(frozen=True)
class ConsolidateSettings:
    model_type: Literal["rag_sequence", "rag_token"]
    """How passages are marginalised: for the whole answer, or token by token."""
    dest: Path
    """Folder for the checkpoint; new or empty."""
    generator_name_or_path: str
    """Generator: folder or hub name."""
    question_encoder_name_or_path: str
    """Question encoder: folder or hub name; DPR, sentence-transformers or any AutoModel."""
    generator_tokenizer_name_or_path: str | None = None
    """Tokenizer of the generator, if it is not with the generator."""
    question_encoder_tokenizer_name_or_path: str | None = None
    """Tokenizer of the question encoder, if it is not with the encoder."""
    config_name_or_path: str | None = None
    """A RAG config to start from; without it nothing but the two models is needed."""
    passage_encoder_name_or_path: str | None = None
    """The passage encoder that belongs to the question encoder, so that a source made by another one is refused."""
    normalize: bool | None = None
    """Scale question vectors to length one; as the encoder says where not given. Longer ones find the same passages,
    but tell them apart more sharply: the best one weighs more in the answer."""
    allow_new_weights: bool = False
    """Accept a model some of whose weights are newly initialised."""


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
        tried = _consolidate(settings, folder)
        save_settings(settings, folder / "settings.yaml")
    return Consolidated(settings.dest, settings.model_type, tried)


def _consolidate(settings: ConsolidateSettings, folder: Path) -> str:
    from ragstone.model.consolidate import Parts, consolidate_checkpoint

    parts = Parts(
        question_encoder=settings.question_encoder_name_or_path,
        generator=settings.generator_name_or_path,
        question_encoder_tokenizer=settings.question_encoder_tokenizer_name_or_path,
        generator_tokenizer=settings.generator_tokenizer_name_or_path,
        config=settings.config_name_or_path,
        passage_encoder=settings.passage_encoder_name_or_path,
        normalize=settings.normalize,
        allow_new_weights=settings.allow_new_weights,
    )
    return consolidate_checkpoint(parts, folder, settings.model_type)


def show(result: Consolidated) -> None:
    """Print where the checkpoint is."""
    print(f"checkpoint  {result.folder} ({result.model_type})")
    print(f"checked     loads back and generates; without a passage it wrote {result.tried!r}")
