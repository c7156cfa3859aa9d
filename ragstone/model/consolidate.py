"""A question encoder and a generator joined into one RAG checkpoint."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from ragstone.encoders.load import (
    PASSAGE_ENCODER_KEY,
    load_encoder,
    pretrained,
    pretrained_tokenizer,
    refuse_new_weights,
)
from ragstone.encoders.pooling import Pooling
from ragstone.encoders.record import EncoderRecord
from ragstone.encoders.recorded import is_sentence_transformers
from ragstone.encoders.text_encoder import TextEncoder
from ragstone.errors import InputError
from ragstone.model.architecture import as_generator, auto_class, choose_prompt
from ragstone.model.checkpoint import (
    Checkpoint,
    keep_own,
    load_checkpoint,
    own_settings,
    record_own,
    record_prompt,
    save_checkpoint,
)
from ragstone.model.decoding import Decoding
from ragstone.model.languages import Languages, set_languages
from ragstone.model.lora import merge_adapters
from ragstone.model.model_type import RagType
from ragstone.progress import activity
from ragstone.types import NO_PASSAGE

QUESTION = "What is this?"
"""What a new checkpoint is asked."""
OF_NO_PART = {"retrieval"}
"""What Ragstone records in a RAG config besides what is true of the model's parts."""
OF_ADAPTERS = {"adapter_base", "adapter_base_fingerprint"}
"""What it records of the generator that adapters were made for."""


@dataclass(frozen=True)
class ConsolidateParts:
    """Where the parts of the new checkpoint are."""

    question_encoder: str
    generator: str
    question_encoder_tokenizer: str | None = None
    generator_tokenizer: str | None = None
    config: str | None = None
    """A RAG config to start from, without what it says of another model's parts; transformers' defaults where None."""
    passage_encoder: str | None = None
    """The passage encoder that belongs to the question encoder, where that is not known."""
    pooling: Pooling | None = None
    """Of the question encoder, which says so itself where None; as the next two."""
    normalize: bool | None = None
    question_prompt: str | None = None
    passage_pooling: Pooling | None = None
    """Of the passage encoder; so are the next two."""
    passage_normalize: bool | None = None
    passage_prompt: str | None = None
    allow_new_weights: bool = False
    prompt_template: str | None = None
    """A decoder-only generator's prompt."""
    chat: bool | None = None
    """Whether its chat template is put around the prompt; where it has one and no prompt is given, if None."""
    languages: Languages = field(default_factory=Languages)
    """What a generator of several languages reads and writes."""


def join_parts(parts: ConsolidateParts) -> Checkpoint:
    """Load both models and put a RAG config around them.

    Raises:
        InputError: a part cannot be read or lacks weights, or it is not clear what a generator of several languages
            reads and writes.
    """
    from transformers import AutoConfig, RagConfig

    _refuse_settings_of_nobody(parts)
    encoder = load_encoder(
        parts.question_encoder,
        "question",
        pooling=parts.pooling,
        normalize=parts.normalize,
        prompt=parts.question_prompt,
        tokenizer_name_or_path=parts.question_encoder_tokenizer,
        allow_new_weights=parts.allow_new_weights,
    )
    model_class = auto_class(pretrained(AutoConfig, parts.generator, "config.json"), parts.generator)
    generator, report = pretrained(model_class, parts.generator, "generator weights", output_loading_info=True)
    refuse_new_weights(parts.generator, sorted(report["missing_keys"]), parts.allow_new_weights)
    tokenizer = pretrained_tokenizer(parts.generator_tokenizer or parts.generator, "generator tokenizer")
    # A model that reads pictures too keeps what concerns its text in a config within.
    vocab_size = generator.config.get_text_config().vocab_size
    if len(tokenizer) > vocab_size:
        raise InputError(
            f"The generator's tokenizer has {len(tokenizer)} tokens, but the generator {parts.generator} only "
            f"{vocab_size}; give the tokenizer that belongs to it."
        )
    set_languages(generator, tokenizer, parts.languages, parts.generator)
    config = RagConfig() if parts.config is None else pretrained(RagConfig, parts.config, "RAG config")
    keep_own(config, OF_NO_PART)
    config.question_encoder, config.generator = encoder.model.config, generator.config
    config.retrieval_vector_size = encoder.dimension
    for name in ("bos_token_id", "eos_token_id", "pad_token_id", "decoder_start_token_id"):
        setattr(config, name, getattr(generator.config, name, None))
    config.vocab_size = vocab_size
    partner = _partner(encoder, parts)
    record_own(
        config,
        passage_encoder=None if partner is None else partner.plain(),
        question_encoder_origin=_origin(encoder, parts).plain() if partner is None else None,
    )
    prompt = choose_prompt(generator.config, tokenizer, None, parts.prompt_template, parts.chat)
    record_prompt(config, prompt)
    joined = as_generator(generator.float().eval(), tokenizer, prompt)
    longest = joined.longest_context()
    if longest is not None:
        config.max_combined_length = min(config.max_combined_length, longest)
    return Checkpoint(config, encoder, joined)


def consolidate_checkpoint(parts: ConsolidateParts, folder: Path, model_type: RagType) -> str:
    """Join the parts, write them to `folder`, load that back and let it write a few tokens.

    Returns:
        What the checkpoint wrote when asked a question without passages.

    Raises:
        InputError: see join_parts.
    """
    return _write(join_parts(parts), folder, model_type)


def merge_checkpoint(name_or_path: str, folder: Path) -> tuple[RagType, str]:
    """Write a checkpoint whose generator has the adapters of another one in its weights, and try it out.

    Returns:
        The checkpoint's type and what it wrote.

    Raises:
        InputError: no RAG checkpoint, or one without adapters.
    """
    checkpoint = load_checkpoint(name_or_path)
    if checkpoint.adapter_base is None:
        raise InputError(f"{name_or_path} has no adapters to merge; give a checkpoint of ragstone finetune --lora_r.")
    checkpoint.generator.model = merge_adapters(checkpoint.generator.model)
    checkpoint.adapter_base = None
    keep_own(checkpoint.config, own_settings(checkpoint.config).keys() - OF_ADAPTERS)
    return checkpoint.model_type, _write(checkpoint, folder, checkpoint.model_type)


def _write(checkpoint: Checkpoint, folder: Path, model_type: RagType) -> str:
    """Write a checkpoint, load it back, and return what it writes."""
    with activity("Writing the checkpoint"):
        save_checkpoint(checkpoint, folder, model_type)
    written = load_checkpoint(str(folder))
    with activity("Trying the checkpoint out"):
        return _try_out(written)


def _partner(encoder: TextEncoder, parts: ConsolidateParts) -> EncoderRecord | None:
    """The passage encoder that belongs to the question encoder, None where nobody knows.

    Known are: a passage encoder that the user names, one that the question encoder was trained with, and the model
    itself where it is a sentence-transformers folder, which encodes both sides.
    """
    recorded = EncoderRecord.read(getattr(encoder.model.config, PASSAGE_ENCODER_KEY, None))
    options: dict[str, Any] = {"normalize": parts.passage_normalize, "prompt": parts.passage_prompt}
    if parts.passage_encoder is not None:
        options |= {"pooling": parts.passage_pooling, "pooling_remedy": "leave --passage_pooling out"}
        return load_encoder(parts.passage_encoder, "passage", **options).record()
    if recorded is None and is_sentence_transformers(parts.question_encoder):
        pooling = parts.passage_pooling or parts.pooling
        return load_encoder(parts.question_encoder, "passage", pooling=pooling, **options).record()
    return recorded


def _refuse_settings_of_nobody(parts: ConsolidateParts) -> None:
    """Refuse settings of a passage encoder where none is named and `_partner` would find none, by configs alone.

    Raises:
        InputError: names the flags.
    """
    told = (parts.passage_pooling, parts.passage_normalize, parts.passage_prompt)
    if parts.passage_encoder is not None or all(setting is None for setting in told):
        return
    from transformers import AutoConfig

    config = pretrained(AutoConfig, parts.question_encoder, "config.json")
    if getattr(config, PASSAGE_ENCODER_KEY, None) is not None or not is_sentence_transformers(parts.question_encoder):
        raise InputError(
            "--passage_pooling, --passage_normalize and --passage_prompt describe a passage encoder; name it with "
            "--passage_encoder_name_or_path."
        )


def _origin(encoder: TextEncoder, parts: ConsolidateParts) -> EncoderRecord:
    """The question encoder with what a source must agree to that the same model built: how a vector is made.

    Whether vectors get length one is left out where the user says so: it changes no ranking, only how sharply the
    scores tell passages apart.
    """
    record = encoder.record()
    settings: dict[str, Any] = {"pooling": encoder.settings.pooling}
    if parts.normalize is None:
        settings["normalize"] = encoder.settings.normalize
    return dataclasses.replace(record, settings=settings)


def _try_out(checkpoint: Checkpoint) -> str:
    """Let the question encoder read a question, and the generator answer it; returns the answer."""
    import torch

    if not np.isfinite(checkpoint.question_encoder.embed([QUESTION])).all():
        raise InputError("The question encoder gives a vector that is not finite; train it anew, or save it again.")
    generator: Any = checkpoint.generator
    generator.model.eval()
    context = checkpoint.context
    decoding = Decoding(num_beams=1, max_length=8)
    with torch.no_grad():
        contexts = generator.encode([context.text(NO_PASSAGE, QUESTION)], context.max_length)
        found = generator.search(contexts, torch.zeros(1, 1), decoding)
    return str(generator.text(found[0][0]))
