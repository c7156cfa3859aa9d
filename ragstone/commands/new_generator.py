"""ragstone new-generator: a small generator for people who have no pretrained one, or want none."""

from __future__ import annotations

import itertools
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from ragstone.errors import InputError
from ragstone.importing import importing
from ragstone.settings import save_settings


@dataclass(frozen=True)
class NewGeneratorSettings:
    dest: Path
    """Folder for the generator; new or empty."""
    csv_path: list[str] = field(default_factory=list)
    """Documents that the tokenizer is learned from, as for build-knowledge."""
    data_dir: Path | None = None
    """Folder with train.source and train.target, from which the tokenizer is learned too."""
    encoder_name_or_path: str | None = None
    """BERT-like text encoder to start from, with its tokenizer, width and language; nothing is learned from texts."""
    architecture: Literal["bart", "llama"] = "bart"
    """bart has an encoder and a decoder; llama is a decoder alone."""
    vocab_size: int = 4000
    """Tokens of a learned tokenizer."""
    d_model: int = 128
    """Width, if there is no encoder to start from."""
    encoder_layers: int = 2
    """Layers of the encoder, if there is one."""
    decoder_layers: int = 2
    """Layers of the decoder."""
    heads: int = 4
    """Attention heads, if there is no encoder to start from."""
    dropout: float = 0.1
    """Dropout in training."""
    seed: int = 42
    """Seed of the weights."""

    def __post_init__(self) -> None:
        for name in ("vocab_size", "d_model", "encoder_layers", "decoder_layers", "heads"):
            if getattr(self, name) < 1:
                raise InputError(f"--{name} is {getattr(self, name)}, but must be at least 1.")
        if self.d_model % self.heads:
            raise InputError(f"--d_model {self.d_model} cannot be divided among --heads {self.heads}; give a multiple.")
        if not 0 <= self.dropout < 1:
            raise InputError(f"--dropout is {self.dropout}, but must be at least 0 and below 1.")
        if self.encoder_name_or_path is None and not self.csv_path:
            raise InputError("Give --csv_path, the documents to learn a tokenizer from, or --encoder_name_or_path.")
        if self.encoder_name_or_path is not None and self.csv_path:
            raise InputError("--encoder_name_or_path brings its own tokenizer; leave --csv_path out.")
        if self.encoder_name_or_path is not None and self.architecture == "llama":
            raise InputError("--architecture llama has no encoder to start from --encoder_name_or_path; leave one out.")


@dataclass(frozen=True)
class NewGenerator:
    """The generator that was made."""

    folder: Path
    parameters: int
    tokens: int
    """Of its vocabulary."""


def new_generator(settings: NewGeneratorSettings) -> NewGenerator:
    """Make a small generator without pretraining, with a tokenizer learned from documents."""
    from ragstone.data.examples import read_examples
    from ragstone.knowledge.documents import find_files, megabytes, read_documents
    from ragstone.output import new_folder, refuse_used_folder
    from ragstone.progress import activity, progress_bar
    from ragstone.types import Passage

    with importing():
        from ragstone.model.contexts import ContextFormat
        from ragstone.model.fresh import (
            GeneratorSize,
            fresh_generator,
            generator_from_encoder,
            train_generator_tokenizer,
        )
        from ragstone.model.fresh_causal import fresh_causal_generator

    refuse_used_folder(settings.dest, "--dest")
    if settings.encoder_name_or_path is not None:
        layers = (settings.encoder_layers, settings.decoder_layers)
        model, tokenizer = generator_from_encoder(
            settings.encoder_name_or_path, *layers, dropout=settings.dropout, seed=settings.seed
        )
    else:
        files = find_files(settings.csv_path)
        examples = [] if settings.data_dir is None else read_examples(settings.data_dir, "train")
        # Documents as the generator will read them, so that what separates passage and question is tokens of its own.
        context = ContextFormat()
        with activity("Learning a tokenizer"), progress_bar("Reading (MB)", megabytes(files)) as bar:
            passages = (Passage(0, document.title, document.text) for document in read_documents(files, bar))
            texts = itertools.chain(
                ("".join(context.text(passage, "")) for passage in passages),
                (text for example in examples for text in (example.question, example.answer)),
            )
            tokenizer = train_generator_tokenizer(texts, settings.vocab_size)
        size = GeneratorSize(
            settings.d_model,
            settings.encoder_layers,
            settings.decoder_layers,
            settings.heads,
            dropout=settings.dropout,
        )
        make = fresh_generator if settings.architecture == "bart" else fresh_causal_generator
        model = make(tokenizer, size, settings.seed)
    with new_folder(settings.dest, "--dest") as folder:
        tokenizer.save_pretrained(folder)
        model.save_pretrained(folder)
        save_settings(settings, folder / "settings.yaml")
    return NewGenerator(settings.dest, model.num_parameters(), len(tokenizer))


def show(result: NewGenerator) -> None:
    """Print what was made."""
    print(f"generator   {result.folder}: {result.parameters / 1e6:,.1f} M parameters, {result.tokens:,} tokens")
