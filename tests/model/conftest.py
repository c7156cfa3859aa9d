"""A tiny T5 beside the models of tests/conftest.py."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast, T5Config, T5ForConditionalGeneration

from ragstone.model.open import ModelRequest, open_model
from tests.conftest import WORDS


def t5_tokenizer() -> PreTrainedTokenizerFast:
    """Whole words, as T5 likes them: no start token, the end token last, padding first in the vocabulary."""
    vocabulary = {word: number for number, word in enumerate(["<pad>", "</s>", "<unk>", "/", "//", "?", *WORDS])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 1)])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, eos_token="</s>", pad_token="<pad>", unk_token="<unk>", model_max_length=512
    )


@pytest.fixture(scope="session")
def t5_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A T5 generator with random weights."""
    folder = tmp_path_factory.mktemp("t5") / "generator"
    tokenizer = t5_tokenizer()
    torch.manual_seed(3)
    config = T5Config(
        vocab_size=len(tokenizer),
        d_model=16,
        d_kv=8,
        d_ff=32,
        num_layers=1,
        num_heads=2,
        initializer_factor=2.0,
        dropout_rate=0.0,
        decoder_start_token_id=0,
    )
    T5ForConditionalGeneration(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def t5_checkpoint_folder(tmp_path_factory: pytest.TempPathFactory, models_folder: Path, t5_folder: Path) -> Path:
    """The T5 joined with the DPR question encoder."""
    from ragstone.commands.consolidate import ConsolidateSettings, consolidate

    folder = tmp_path_factory.mktemp("t5-checkpoint") / "rag"
    consolidate(
        ConsolidateSettings(
            model_type="rag_token",
            dest=folder,
            generator_name_or_path=str(t5_folder),
            question_encoder_name_or_path=str(models_folder / "question_encoder"),
        )
    )
    return folder


@pytest.fixture(params=["rag_sequence", "rag_token"])
def model_type(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture
def open_rag(checkpoint_folder: Path, source_folder: Path, model_type: str) -> Callable[..., Any]:
    """Opens the tiny checkpoint over the tiny source as `model_type`; keyword arguments go into the request."""

    def opener(**changes: Any) -> Any:
        request = {"name_or_path": str(checkpoint_folder), "model_type": model_type, "n_docs": 3, **changes}
        return open_model(ModelRequest(**{"passages_path": str(source_folder), **request}))

    return opener
