"""Every family of generators, joined, fine-tuned and asked with passages that are retrieved for each question."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from ragstone.commands.finetune import FinetuneSettings, finetune
from ragstone.model.decoding import Decoding
from ragstone.model.open import ModelRequest, open_model
from tests.conftest import build_source, join_models
from tests.model import test_causal as causal
from tests.model.families import FAMILIES

pytestmark = pytest.mark.slow
DOCUMENTS = [("a", "b c"), ("b", "c a c"), ("c", "a b"), ("a b", "c c"), ("b c", "a")]
PAIRS = [("a ?", "b c"), ("b ?", "c a"), ("c ?", "a b"), ("a b ?", "c"), ("b c ?", "a")]


@pytest.fixture(scope="module")
def material(tmp_path_factory: pytest.TempPathFactory, models_folder: Path) -> Path:
    """Holds a knowledge source, and pairs in train and val."""
    folder = tmp_path_factory.mktemp("words")
    documents = folder / "documents.tsv"
    documents.write_text("".join(f"{title}\t{text}\n" for title, text in DOCUMENTS), encoding="utf-8")
    build_source(documents, folder / "source", models_folder / "passage_encoder")
    for split in ("train", "val"):
        for column, ending in enumerate(("source", "target")):
            lines = "".join(f"{pair[column]}\n" for pair in PAIRS)
            (folder / f"{split}.{ending}").write_text(lines, encoding="utf-8")
    return folder


@pytest.fixture(params=[*FAMILIES, *causal.FAMILIES])
def checkpoint(
    request: pytest.FixtureRequest, family_folder: Callable[[str], Path], models_folder: Path, tmp_path: Path
) -> Path:
    """A tiny model of the family beside the question encoder."""
    name, options = request.param, {}
    if name in FAMILIES:
        folder = family_folder(name)
        languages = FAMILIES[name].languages
        options = {"src_lang": languages.source, "tgt_lang": languages.target}
    else:
        folder = tmp_path / re.sub(r"\W+", "-", name)
        generator = causal.make(name)
        # Opened as what belongs to Qwen2, the tokenizer has a token more.
        generator.model.resize_token_embeddings(8)
        generator.model.float().save_pretrained(folder)
        generator.tokenizer.save_pretrained(folder)
        options = {"prompt_template": "{passage} {question}"}
    return join_models(folder, models_folder / "question_encoder", tmp_path / "rag", **options)


@pytest.mark.parametrize("kind", ["rag_sequence", "rag_token"])
def test_trained_and_asked(checkpoint: Path, material: Path, tmp_path: Path, kind: Any) -> None:
    """Loss falls, of question encoder and generator together, and what was written is opened and answers."""
    finetune(
        FinetuneSettings(
            data_dir=material,
            output_dir=tmp_path / "run",
            model_name_or_path=str(checkpoint),
            model_type=kind,
            passages_path=str(material / "source"),
            n_docs=2,
            max_source_length=20,
            max_target_length=6,
            val_max_target_length=6,
            train_batch_size=5,
            num_train_epochs=8,
            warmup_steps=0,
            learning_rate=0.01,
            num_beams=2,
            gpus=0,
        )
    )
    questions, answers = [list(column) for column in zip(*PAIRS, strict=True)]
    before: Any = open_model(
        ModelRequest(str(checkpoint), model_type=kind, passages_path=str(material / "source"), n_docs=2)
    )
    after: Any = open_model(ModelRequest(str(tmp_path / "run" / "last"), n_docs=2))
    assert after.model_type == kind
    with torch.no_grad():
        assert after(questions, answers).nll < 0.95 * before(questions, answers).nll
    for own, trained in (
        (before.question_encoder, after.question_encoder),
        (before.generator_model, after.generator_model),
    ):
        pairs = zip(own.parameters(), trained.parameters(), strict=True)
        assert any(not torch.equal(mine, other) for mine, other in pairs)
    for row in after.generate(questions, Decoding(num_beams=2, max_length=6)):
        assert sum(found.posterior for found in row[0].passages) == pytest.approx(1, abs=1e-4)
