"""RAG checkpoints of every family of generators, there and back with transformers' classes."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import (
    AutoModel,
    AutoModelForSeq2SeqLM,
    AutoTokenizer,
    RagConfig,
    RagSequenceForGeneration,
    RagTokenForGeneration,
    RagTokenizer,
)

from ragstone.model.checkpoint import load_checkpoint, save_checkpoint
from ragstone.model.consolidate import ConsolidateParts, join_parts
from tests.model.families import FAMILIES

CLASSES: dict[str, Any] = {"rag_sequence": RagSequenceForGeneration, "rag_token": RagTokenForGeneration}


@torch.no_grad()
def hold_together(ours: Any, theirs: Any) -> None:
    """The same weights under the same names, and equal logits where both read one context."""
    mine, other = ours.generator.model.state_dict(), theirs.rag.generator.state_dict()
    assert mine.keys() == other.keys()
    assert all(torch.equal(mine[name], other[name]) for name in mine)
    inputs = ours.generator.tokenizer(["a b c"], return_tensors="pt")
    before = torch.tensor([[ours.generator._start_token(), 5, 4]])
    logits = [
        model.eval()(input_ids=inputs["input_ids"], attention_mask=inputs["attention_mask"], decoder_input_ids=before)
        for model in (ours.generator.model, theirs.rag.generator)
    ]
    torch.testing.assert_close(logits[0].logits, logits[1].logits, rtol=1e-4, atol=1e-4)
    start = ours.generator.model.generation_config.decoder_start_token_id
    assert theirs.rag.generator.config.decoder_start_token_id == start


@pytest.mark.parametrize("name", FAMILIES)
def test_ours_opens_in_transformers(
    name: str, model_type: Any, family_folder: Callable[[str], Path], models_folder: Path, tmp_path: Path
) -> None:
    encoder = str(models_folder / "question_encoder")
    joined = join_parts(ConsolidateParts(encoder, str(family_folder(name)), languages=FAMILIES[name].languages))
    save_checkpoint(joined, tmp_path / "rag", model_type)
    theirs, report = CLASSES[model_type].from_pretrained(tmp_path / "rag", output_loading_info=True)
    assert not report["missing_keys"] and not report["unexpected_keys"] and not report["mismatched_keys"]
    hold_together(joined, theirs)
    hold_together(load_checkpoint(str(tmp_path / "rag")), theirs)


@pytest.mark.parametrize("name", FAMILIES)
def test_theirs_opens_here(
    name: str, model_type: Any, family_folder: Callable[[str], Path], models_folder: Path, tmp_path: Path
) -> None:
    """Written by transformers alone, the languages recorded where transformers records them: in the tokenizer."""
    languages = FAMILIES[name].languages
    codes = {} if languages.target is None else {"src_lang": languages.source, "tgt_lang": languages.target}
    encoder = AutoModel.from_pretrained(models_folder / "question_encoder")
    generator = AutoModelForSeq2SeqLM.from_pretrained(family_folder(name))
    tokenizer = AutoTokenizer.from_pretrained(family_folder(name), **codes)
    if name == "mBART":
        generator.config.decoder_start_token_id = tokenizer.convert_tokens_to_ids(languages.target)
    config = RagConfig.from_question_encoder_generator_configs(encoder.config, generator.config)
    theirs = CLASSES[model_type](config=config, question_encoder=encoder, generator=generator)
    theirs.save_pretrained(tmp_path / "rag")
    question_tokenizer = AutoTokenizer.from_pretrained(models_folder / "question_encoder")
    RagTokenizer(question_tokenizer, tokenizer).save_pretrained(tmp_path / "rag")
    ours = load_checkpoint(str(tmp_path / "rag"))
    assert ours.model_type == model_type
    hold_together(ours, theirs)
    expected = AutoTokenizer.from_pretrained(family_folder(name), **codes)
    for texts in ({"text": "a c"}, {"text_target": "b"}):
        assert ours.generator.tokenizer(**texts)["input_ids"] == expected(**texts)["input_ids"]
    opening = FAMILIES[name].opening
    forced = ours.generator.model.generation_config.forced_bos_token_id
    assert (None if forced is None else expected.convert_ids_to_tokens(forced)) == opening
