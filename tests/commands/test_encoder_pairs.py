"""Encoders of every kind from build-knowledge to ask, held against sentence-transformers on both sides."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pytest
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer.modules import Normalize, Pooling, Transformer

from ragstone.__main__ import main
from ragstone.commands.ask import AskSettings, ask
from ragstone.knowledge.source import KnowledgeSource
from ragstone.model import consolidate
from ragstone.model.open import ModelRequest, open_model
from tests.commands.conftest import refused
from tests.conftest import DOCUMENTS, decoder_folder

QUESTIONS = ["who founded the old town ?", "what is red ?"]


@dataclass(frozen=True)
class Side:
    """An encoder and how it is told to work."""

    folder: str
    pooling: str = "mean"
    normalize: bool = False
    prompt: str = ""
    folder_says: bool = False
    """Whether the folder says all that itself."""

    def vectors(self, texts: list[str]) -> np.ndarray:
        """sentence-transformers' vectors of `texts`."""
        if self.folder_says:
            model = SentenceTransformer(self.folder, device="cpu")
        else:
            body = Transformer(self.folder)
            pooling = Pooling(
                body.get_embedding_dimension(), pooling_mode="lasttoken" if self.pooling == "last" else self.pooling
            )
            model = SentenceTransformer(
                modules=[body, pooling, *([Normalize()] if self.normalize else [])], device="cpu"
            )
        return np.asarray(model.encode(texts, prompt=self.prompt))

    def flags(self, side: str) -> list[str]:
        """What a command is told of it, as `side` ("question" or "passage")."""
        if self.folder_says:
            return []
        start = "passage_" if side == "named" else ""
        normalize = f"--{start}normalize" if self.normalize else f"--no_{start}normalize"
        kind = "question" if side == "question" else "passage"
        return [f"--{start}pooling", self.pooling, normalize, f"--{kind}_prompt", self.prompt]


@dataclass(frozen=True)
class Pair:
    question: Side
    passage: Side
    metric: str
    consolidated: list[str] = field(default_factory=list)


def like_e5(body: str, folder: Path) -> None:
    modules = [Transformer(body), Pooling(24, pooling_mode="mean"), Normalize()]
    prompts = {"query": "query: ", "passage": "passage: "}
    SentenceTransformer(modules=modules, prompts=prompts, device="cpu").save(str(folder))


@pytest.fixture(
    params=["MiniLM", "E5 by its folder", "E5 by hand", "BGE by hand", "decoder-only questions", "decoder-only"]
)
def pair(request: pytest.FixtureRequest, tmp_path: Path, minilm_folder: str, plain_bert_folder: Path) -> Pair:
    bert = str(plain_bert_folder)
    if request.param == "MiniLM":
        side = Side(minilm_folder, normalize=True, folder_says=True)
        return Pair(side, side, "cosine")
    if request.param == "E5 by its folder":
        like_e5(bert, tmp_path / "e5")
        folder = str(tmp_path / "e5")
        question = Side(folder, normalize=True, prompt="query: ", folder_says=True)
        return Pair(question, Side(folder, normalize=True, prompt="passage: ", folder_says=True), "cosine")
    if request.param == "E5 by hand":
        return Pair(Side(bert, "mean", True, "query: "), Side(bert, "mean", True, "passage: "), "cosine")
    if request.param == "BGE by hand":
        return Pair(Side(bert, "cls", True, "what is the bridge : "), Side(bert, "cls", True), "cosine")
    folder = str(decoder_folder(tmp_path / "decoder", "qwen3" if request.param == "decoder-only" else "llama"))
    if request.param == "decoder-only":
        return Pair(Side(folder, "last", True, "what is "), Side(folder, "last", True), "cosine")
    # A passage encoder of another kind, whose vectors are as long.
    return Pair(
        Side(folder, "last", prompt="who was "), Side(str(small_bert(tmp_path / "bert")), "cls"), "inner_product"
    )


def small_bert(folder: Path) -> Path:
    """A BERT of 16 dimensions, as many as those of the decoder-only models."""
    import torch
    from transformers import BertConfig, BertModel

    from tests.conftest import word_tokenizer

    tokenizer = word_tokenizer("[CLS]", "[SEP]", "[PAD]", "[UNK]", lower=True)
    torch.manual_seed(4)
    config = BertConfig(
        vocab_size=len(tokenizer), hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=32
    )
    BertModel(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def test_vectors_and_ranking_are_sentence_transformers(
    pair: Pair, documents_file: Path, models_folder: Path, tmp_path: Path
) -> None:
    build = ["build-knowledge", "--csv_path", str(documents_file), "--output_dir", str(tmp_path / "knowledge")]
    build += ["--dpr_ctx_encoder_model_name", pair.passage.folder, "--index", "flat", "--precision", "fp32"]
    assert main([*build, *pair.passage.flags("passage")]) == 0
    source = KnowledgeSource(tmp_path / "knowledge")
    passages = pair.passage.vectors([f"{title} {text}" for title, text in DOCUMENTS])
    np.testing.assert_allclose(source.store.vectors(range(len(DOCUMENTS))), passages, atol=1e-5)
    assert source.manifest is not None
    assert source.manifest.metric == pair.metric
    recorded = source.manifest.encoder_settings or {}
    assert recorded["prompt"] == pair.passage.prompt
    assert (recorded["pooling"], recorded["normalize"]) == (pair.passage.pooling, pair.passage.normalize)

    join = ["consolidate", "--model_type", "rag_sequence", "--dest", str(tmp_path / "rag")]
    join += ["--generator_name_or_path", str(models_folder / "generator")]
    join += ["--question_encoder_name_or_path", pair.question.folder, *pair.question.flags("question")]
    if not pair.passage.folder_says:
        join += ["--passage_encoder_name_or_path", pair.passage.folder, *pair.passage.flags("named")]
    assert main(join) == 0
    model = open_model(ModelRequest(str(tmp_path / "rag"), passages_path=str(tmp_path / "knowledge")))
    questions = pair.question.vectors(QUESTIONS)
    np.testing.assert_allclose(model.question_encoder.embed(QUESTIONS), questions, atol=1e-5)

    # What a user sees: passages in the order of sentence-transformers' scores.
    settings = AskSettings(str(tmp_path / "rag"), QUESTIONS[0], passages_path=str(tmp_path / "knowledge"), n_docs=4)
    ((_, answer, _),) = ask(settings)
    scores = passages @ questions[0]
    best = np.argsort(-scores)[:4]
    np.testing.assert_allclose([found.score for found in answer.passages], scores[best], atol=1e-4)
    assert [found.passage.id for found in answer.passages] == best.tolist()


@pytest.fixture
def built(plain_bert_folder: Path, documents_file: Path, tmp_path: Path) -> Path:
    """A source of a plain BERT with pooling, normalisation and prompt by hand."""
    words = f"build-knowledge --csv_path {documents_file} --output_dir {tmp_path / 'knowledge'}"
    extra = f"--dpr_ctx_encoder_model_name {plain_bert_folder} --pooling mean --normalize --passage_prompt old"
    assert main([*words.split(), *extra.split()]) == 0
    return tmp_path / "knowledge"


@pytest.mark.parametrize(
    ("flags", "reason"),
    [
        ("--passage_pooling cls --passage_normalize --passage_prompt old", "the pooling ('mean' and 'cls')"),
        ("--passage_pooling mean --passage_prompt old", "the normalisation (True and False)"),
        ("--passage_pooling mean --passage_normalize --passage_prompt red", "the prompt ('old' and 'red')"),
        ("--passage_pooling mean --passage_normalize", "the prompt ('old' and '')"),
        ("", "the pooling ('mean' and 'cls'), the normalisation (True and False), the prompt ('old' and '')"),
    ],
)
def test_another_passage_encoder_is_refused_with_the_reason(
    built: Path,
    plain_bert_folder: Path,
    models_folder: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    flags: str,
    reason: str,
) -> None:
    words = consolidate_words(models_folder, plain_bert_folder, tmp_path / "rag")
    named = ["--pooling", "mean", "--normalize", "--passage_encoder_name_or_path", str(plain_bert_folder)]
    assert main([*words, *named, *flags.split()]) == 0
    message = refused(capsys, asked(tmp_path / "rag", built))
    assert f"belongs to another one {plain_bert_folder} (fingerprint" in message
    assert f"; they differ in {reason}; build the source with that one" in message


@pytest.mark.parametrize(
    ("flags", "reason"),
    [
        ("--pooling cls --normalize", "the pooling ('mean' and 'cls')"),
        ("--pooling mean", "the normalisation (True and False)"),
        ("--pooling mean --normalize", None),
        ("--pooling mean --no_normalize", None),
    ],
)
def test_the_same_model_used_in_another_way_is_refused(
    built: Path,
    plain_bert_folder: Path,
    models_folder: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    flags: str,
    reason: str | None,
) -> None:
    """Though nobody named the passage encoder. An explicit --no_normalize only makes the scores sharper."""
    assert main([*consolidate_words(models_folder, plain_bert_folder, tmp_path / "rag"), *flags.split()]) == 0
    if reason is None:
        assert main(asked(tmp_path / "rag", built)) == 0
        return
    message = refused(capsys, asked(tmp_path / "rag", built))
    assert (
        f"differ in {reason}; give consolidate the --pooling and --normalize that build-knowledge was given" in message
    )


def test_flags_of_a_passage_encoder_that_nobody_knows(
    plain_bert_folder: Path,
    models_folder: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(consolidate, "load_encoder", lambda *_, **__: pytest.fail("an encoder was loaded"))
    words = consolidate_words(models_folder, plain_bert_folder, tmp_path / "rag")
    message = refused(capsys, [*words, "--passage_prompt", "old "])
    assert "describe a passage encoder; name it with --passage_encoder_name_or_path" in message


def test_a_passage_encoder_of_dpr_pools_in_its_own_way(
    plain_bert_folder: Path, models_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = consolidate_words(models_folder, plain_bert_folder, tmp_path / "rag")
    named = ["--passage_encoder_name_or_path", str(models_folder / "passage_encoder"), "--passage_pooling", "mean"]
    message = refused(capsys, [*words, *named])
    assert "which pools in its own way; leave --passage_pooling out" in message


def test_what_is_recorded(built: Path, plain_bert_folder: Path, models_folder: Path, tmp_path: Path) -> None:
    words = consolidate_words(models_folder, plain_bert_folder, tmp_path / "rag")
    named = f"--question_prompt who --passage_encoder_name_or_path {plain_bert_folder} --passage_pooling mean"
    assert main([*words, *named.split(), "--pooling", "mean", "--passage_normalize", "--passage_prompt", "old"]) == 0
    checkpoint = json.loads((tmp_path / "rag" / "config.json").read_text(encoding="utf-8"))["ragstone"]
    manifest = json.loads((built / "knowledge.json").read_text(encoding="utf-8"))
    settings = {"pooling": "mean", "normalize": True, "prompt": "old", "max_length": 40, "pair": False}
    assert manifest["encoder_settings"] == checkpoint["passage_encoder"]["settings"] == settings
    assert manifest["encoder_weights"] == checkpoint["passage_encoder"]["weights"]
    assert checkpoint["question_encoder"] == {**settings, "normalize": False, "prompt": "who"}


def consolidate_words(models_folder: Path, question_encoder: Path, dest: Path) -> list[str]:
    words = f"consolidate --model_type rag_sequence --generator_name_or_path {models_folder / 'generator'}"
    return [*words.split(), "--question_encoder_name_or_path", str(question_encoder), "--dest", str(dest)]


def asked(checkpoint: Path, source: Path) -> list[str]:
    words = f"ask --model_name_or_path {checkpoint} --passages_path {source} --max_length 3"
    return [*words.split(), "--question", "who founded the town ?"]
