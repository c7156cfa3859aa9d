"""Opening a model by name: a RAG checkpoint with its knowledge source, or a generator alone."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from ragstone.allocation import give_freed_memory_back
from ragstone.arithmetic import Quantization
from ragstone.encoders.load import pretrained, pretrained_tokenizer, refuse_new_weights
from ragstone.encoders.precision import best_device
from ragstone.errors import InputError
from ragstone.model.architecture import added_tokens, as_generator, auto_class, choose_prompt
from ragstone.model.checkpoint import (
    Checkpoint,
    change_config,
    load_checkpoint,
    own_settings,
    record_base,
    record_own,
    record_prompt,
    save_checkpoint,
)
from ragstone.model.closed_book import ClosedBook, recorded_context
from ragstone.model.contexts import ContextFormat
from ragstone.model.finder import open_finder
from ragstone.model.generator import Generator
from ragstone.model.generator_request import GeneratorRequest
from ragstone.model.languages import Languages, set_languages
from ragstone.model.lora import LoraSettings, adapter_differences, add_adapters
from ragstone.model.model import Model
from ragstone.model.model_type import RAG_TYPES, RagType
from ragstone.model.rag import RagModel, RagOptions
from ragstone.model.source_choice import ChosenSource, SourceRequest, choose_source_for_all
from ragstone.retrieval.backend import InEveryProcess, RetrievalBackend
from ragstone.retrieval.method import Method, MethodRequest

TARGET_LENGTH = 25
"""Tokens of an answer that is learnt from, where a request does not say."""
WRITTEN = "The length of answers that may be written (max_length, or val_max_target_length and test_max_target_length)"


@dataclasses.dataclass(frozen=True)
class ModelRequest:
    """Which model to open and what to change about it. None leaves what the checkpoint says."""

    name_or_path: str
    model_type: str | None = None
    index_name: str | None = None
    index_path: str | None = None
    passages_path: str | None = None
    use_dummy_dataset: bool = False
    """Search the small source for trying a model out, whatever the checkpoint names."""
    n_docs: int | None = None
    prefix: str | None = None
    max_combined_length: int | None = None
    max_source_length: int | None = None
    """Tokens of a question (RAG) or of the whole input (closed-book)."""
    max_target_length: int | None = None
    """Tokens of an answer that is learnt from; where None, TARGET_LENGTH, or as many as there are positions for."""
    longest_answer: int = 0
    """Tokens of the longest answer that will be written; see Decoding.longest_answer."""
    label_smoothing: float = 0.0
    freeze_question_encoder: bool = False
    generator_changes: dict[str, Any] = dataclasses.field(default_factory=dict)
    """Entries of the generator's config to set before it is used (dropout, encoder_layerdrop, ...)."""
    gradient_checkpointing: bool = False
    prompt_template: str | None = None
    """A decoder-only generator's prompt."""
    chat: bool | None = None
    """Whether a decoder-only generator's chat template is put around the prompt."""
    lora: LoraSettings | None = None
    """Train adapters of the generator instead of its weights."""
    torch_dtype: str | None = None
    """Type of the generator's weights (float32, bfloat16, float16); float32 where None."""
    quantization: Quantization | None = None
    """Keep a RAG generator's linear layers in 8 or 4 bits; they cannot be trained then, but adapters can."""
    languages: Languages = dataclasses.field(default_factory=Languages)
    """Of a generator of several languages."""
    config_name: str | None = None
    tokenizer_name: str | None = None
    """Closed-book: where the tokenizer is, if not with the model."""
    cache_dir: str | None = None
    device: torch.device | None = None
    retrieval: RetrievalBackend = dataclasses.field(default_factory=InEveryProcess)
    """Where passages are searched for."""
    method: MethodRequest = dataclasses.field(default_factory=MethodRequest)
    """By what they are found."""

    def __post_init__(self) -> None:
        for name in ("n_docs", "max_combined_length", "max_source_length", "max_target_length"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise InputError(f"{name} is {value}, but must be at least 1.")


def open_model(request: ModelRequest) -> Model:
    """Open the model that `request` describes, in evaluation mode, on its device.

    Raises:
        InputError: the model or its knowledge source cannot be used, or they do not belong together.
    """
    from transformers import AutoConfig

    name = request.config_name or request.name_or_path
    config = pretrained(AutoConfig, name, "config.json", cache_dir=request.cache_dir)
    model: Model
    if config.model_type == "rag":
        model = _open_rag(request, config)
    elif request.model_type in RAG_TYPES:
        raise InputError(
            f"{request.name_or_path} is a {config.model_type} model, not a {request.model_type} checkpoint; join a "
            "question encoder and a generator with ragstone consolidate."
        )
    else:
        model = _open_closed_book(request, config.model_type)
    if (request.device or best_device()).type != "cpu":
        # That of weights which are on another device now.
        give_freed_memory_back()
    return model


def refuse_unsearchable(request: ModelRequest) -> None:
    """Refuse a request whose knowledge source lacks the index that it asks for, without loading anything.

    Raises:
        InputError: names the source and the index.
    """
    from transformers import AutoConfig

    name = request.config_name or request.name_or_path
    config = pretrained(AutoConfig, name, "config.json", cache_dir=request.cache_dir)
    if config.model_type == "rag":
        _retrieval(request, config)


def _open_rag(request: ModelRequest, config: Any) -> RagModel:
    if request.tokenizer_name is not None:
        raise InputError(
            f"--tokenizer_name is {request.tokenizer_name}, but {request.name_or_path} is a RAG checkpoint, which has "
            "two tokenizers of its own; leave it out, or join the parts anew with ragstone consolidate."
        )
    if request.model_type is not None and request.model_type not in RAG_TYPES:
        raise InputError(
            f"{request.name_or_path} is a RAG checkpoint and cannot be opened as {request.model_type}; leave "
            "--model_type out."
        )
    chosen, method = _retrieval(request, config)
    checkpoint = load_checkpoint(
        request.name_or_path,
        cache_dir=request.cache_dir,
        config_name=request.config_name,
        request=GeneratorRequest(
            request.generator_changes,
            request.prompt_template,
            request.chat,
            request.languages,
            request.quantization,
            request.torch_dtype,
            request.device or best_device(),
        ),
    )
    encoder = checkpoint.question_encoder
    source, finder = open_finder(method, request.retrieval, chosen.location, encoder)
    if method.by_vectors:
        origin = checkpoint.question_encoder_origin
        source.refuse_other_encoder(encoder.dimension, checkpoint.passage_encoder, request.name_or_path, origin)
    if request.max_source_length is not None:
        _refuse_no_text("max_source_length", request.max_source_length, encoder.tokenizer.num_special_tokens_to_add())
        length = min(request.max_source_length, encoder.settings.max_length)
        encoder.settings = dataclasses.replace(encoder.settings, max_length=length)
    _prepare_generator(checkpoint, request)
    model_type: RagType = checkpoint.model_type
    if request.model_type is not None:
        model_type = "rag_token" if request.model_type == "rag_token" else "rag_sequence"
    options = RagOptions(
        model_type=model_type,
        n_docs=request.n_docs or checkpoint.config.n_docs,
        context=_context(checkpoint.context, request, checkpoint.generator),
        label_smoothing=request.label_smoothing,
        max_target_length=_target_length(request, checkpoint.generator),
        freeze_question_encoder=request.freeze_question_encoder,
    )

    def record_source(config: Any) -> None:
        chosen.record(config, source)
        record_own(config, retrieval=method.settings())

    model = RagModel(
        encoder,
        checkpoint.generator,
        finder,
        options,
        save=lambda rag, folder: _save_rag(checkpoint, rag, record_source, folder),
        source_fingerprint=source.fingerprint,
        corpus_size=source.passages,
        retrieval=method.settings(),
    )
    return model.to(request.device or best_device()).eval()


def _retrieval(request: ModelRequest, config: Any) -> tuple[ChosenSource, Method]:
    """Where passages are and by what they are found; refused before weights are loaded, if they cannot be."""
    asked = SourceRequest(request.passages_path, request.index_path, request.index_name, request.use_dummy_dataset)
    chosen = choose_source_for_all(asked, config, request.retrieval)
    indexes, path = request.retrieval.indexes(chosen.location), chosen.location.passages_path
    method = request.method.resolve(own_settings(config).get("retrieval"), indexes, path)
    backend = request.retrieval.for_words() if method.by_words else request.retrieval
    if backend is not request.retrieval:
        # Every process opens the source then, which may be elsewhere on its host.
        chosen = choose_source_for_all(asked, config, backend)
    return chosen, method


def _save_rag(checkpoint: Checkpoint, model: RagModel, record_source: Callable[[Any], None], folder: Path) -> None:
    """Save with the settings in force, so that the checkpoint opens again without flags."""
    config, options = checkpoint.config, model.options
    config.n_docs = options.n_docs
    config.max_combined_length = options.context.max_length
    # A checkpoint of transformers may have a prefix in either place.
    config.prefix = checkpoint.generator.model.config.prefix = options.context.prefix or None
    record_source(config)
    save_checkpoint(checkpoint, folder, options.model_type)


def _open_closed_book(request: ModelRequest, model_type: str) -> ClosedBook:
    from transformers import AutoConfig

    name, cache_dir = request.name_or_path, request.cache_dir
    if request.lora is not None:
        raise InputError(f"--lora_r is for RAG checkpoints, but {name} is a generator alone; leave it out.")
    if request.quantization is not None:
        raise InputError(f"--quantization is for RAG checkpoints, but {name} is a generator alone; leave it out.")
    if request.model_type is not None and request.model_type != model_type:
        raise InputError(f"{name} is a {model_type} model, not {request.model_type}; leave --model_type out.")
    config = pretrained(AutoConfig, request.config_name or name, "config.json", cache_dir=cache_dir)
    model_class = auto_class(config, name)
    change_config(config, request.generator_changes)
    model, report = pretrained(
        model_class, name, "weights", config=config, output_loading_info=True, cache_dir=cache_dir
    )
    refuse_new_weights(name, sorted(report["missing_keys"]), allowed=None)
    tokenizer = pretrained_tokenizer(request.tokenizer_name or name, cache_dir=cache_dir)
    set_languages(model, tokenizer, request.languages, name)
    model = model.to(GeneratorRequest(torch_dtype=request.torch_dtype).weight_type)
    if request.gradient_checkpointing:
        checkpoint_gradients(model)
    prompt = choose_prompt(config, tokenizer, own_settings(config).get("prompt"), request.prompt_template, request.chat)
    record_prompt(model.config, prompt)
    generator = as_generator(model, tokenizer, prompt)
    _refuse_context_length(generator, "max_source_length", request.max_source_length, request)
    recorded = recorded_context(model.config)
    if request.max_source_length is not None:
        recorded = dataclasses.replace(recorded, max_length=request.max_source_length)
    closed_book = ClosedBook(
        generator,
        model_type,
        context=_context(recorded, request, generator),
        label_smoothing=request.label_smoothing,
        max_target_length=_target_length(request, generator),
    )
    return closed_book.to(request.device or best_device()).eval()


def _context(recorded: ContextFormat, request: ModelRequest, generator: Generator[Any]) -> ContextFormat:
    """What the generator reads. A recorded length beyond its positions becomes their number; one asked for is refused.

    Raises:
        InputError: a length that is asked for is more than the generator has positions for, or has no room for a text.
    """
    limit = generator.longest_target
    for name, asked in (("max_target_length", request.max_target_length), (WRITTEN, request.longest_answer)):
        if limit is not None and asked is not None and asked > limit:
            raise InputError(f"{name} is {asked}, but the generator has positions for {limit} tokens; lower it.")
    _refuse_no_text("max_target_length", request.max_target_length, added_tokens(generator).target)
    _refuse_context_length(generator, "max_combined_length", request.max_combined_length, request)
    longest = generator.longest_context(_longest_answer(request))
    length = request.max_combined_length or recorded.max_length
    return dataclasses.replace(
        recorded,
        prefix=recorded.prefix if request.prefix is None else request.prefix,
        max_length=length if longest is None else min(length, longest),
    )


def _prepare_generator(checkpoint: Checkpoint, request: ModelRequest) -> None:
    """Adapters and gradient checkpointing, as asked for."""
    generator, lora = checkpoint.generator, request.lora
    if lora is not None and request.quantization == "4bit" and generator.model.device.type == "cpu":
        # What bitsandbytes multiplies 4 bits with on a CPU has no gradient.
        raise InputError("Beside --quantization 4bit, adapters can be trained on a GPU only; on a CPU take 8bit.")
    if request.quantization is not None and lora is None:
        # A search or an evaluation; rounded weights have no gradients.
        generator.model.requires_grad_(False)
    if lora is not None and checkpoint.adapter_base is None:
        folder = Path(request.name_or_path)
        weights = GeneratorRequest(quantization=request.quantization, torch_dtype=request.torch_dtype)
        record_base(checkpoint.config, generator.model, weights)
        generator.model = add_adapters(generator.model, lora)
        checkpoint.adapter_base = str(folder.resolve()) if folder.is_dir() else request.name_or_path
    elif lora is not None:
        for name, (asked, there) in adapter_differences(generator.model, lora).items():
            raise InputError(
                f"--lora_{name} is {asked}, but the adapters of {request.name_or_path} have {there}; give that, or "
                "merge them first with ragstone consolidate --merge_lora."
            )
    if request.gradient_checkpointing:
        checkpoint_gradients(generator.model)


def _refuse_context_length(generator: Generator[Any], name: str, asked: int | None, request: ModelRequest) -> None:
    _refuse_no_text(name, asked, added_tokens(generator).context)
    answer = _longest_answer(request)
    longest = generator.longest_context(answer)
    if longest is not None and asked is not None and asked > longest:
        beside = f", beside answers of {answer}" if longest < (generator.longest_context() or 0) else ""
        raise InputError(f"{name} is {asked}, but the generator has positions for {longest} tokens{beside}; lower it.")


def _refuse_no_text(name: str, asked: int | None, added: int) -> None:
    if asked is not None and asked <= added:
        raise InputError(f"{name} is {asked}, but must be at least {added + 1}: special tokens take {added}.")


def _longest_answer(request: ModelRequest) -> int:
    """Tokens of the longest answer that the request is known to learn from or to write."""
    return max(request.max_target_length or 0, request.longest_answer)


def _target_length(request: ModelRequest, generator: Generator[Any]) -> int:
    """Tokens of an answer that training looks at."""
    return request.max_target_length or min(TARGET_LENGTH, generator.longest_target or TARGET_LENGTH)


def checkpoint_gradients(model: Any) -> None:
    """Trade a second forward pass for the memory of activations. Not re-entrant: the contexts carry no gradient."""
    model.activation_checkpointing_enable({"use_reentrant": False})
