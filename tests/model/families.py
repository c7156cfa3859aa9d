"""A tiny real model of every family of sequence-to-sequence generators, with a tokenizer of the family's own class.

Weights are random and far from uniform; vocabularies hold the words a, b and c and what the family has besides
(language codes, bytes, reserved tokens).
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import sentencepiece
import torch
from transformers import (
    AutoModelForSeq2SeqLM,
    AutoTokenizer,
    BartConfig,
    BartForConditionalGeneration,
    BartTokenizer,
    ByT5Tokenizer,
    LEDConfig,
    LEDForConditionalGeneration,
    M2M100Config,
    M2M100ForConditionalGeneration,
    M2M100Tokenizer,
    MarianConfig,
    MarianMTModel,
    MarianTokenizer,
    MBart50Tokenizer,
    MBartConfig,
    MBartForConditionalGeneration,
    MBartTokenizer,
    MT5Config,
    MT5ForConditionalGeneration,
    NllbTokenizer,
    PegasusConfig,
    PegasusForConditionalGeneration,
    PegasusTokenizer,
    T5Config,
    T5ForConditionalGeneration,
    T5Tokenizer,
    UMT5Config,
    UMT5ForConditionalGeneration,
)

from ragstone.model.languages import Languages, set_languages
from ragstone.model.seq2seq import Seq2SeqGenerator

WORDS = ["a", "b", "c"]
POSITIONS = 28
WINDOW = 4
"""Tokens that a local attention of LED sees: fewer than the longest context has."""
SMALL = {
    "d_model": 8,
    "encoder_layers": 1,
    "decoder_layers": 1,
    "encoder_attention_heads": 2,
    "decoder_attention_heads": 2,
    "encoder_ffn_dim": 16,
    "decoder_ffn_dim": 16,
    "dropout": 0.0,
    "attention_dropout": 0.0,
    "activation_dropout": 0.0,
    "encoder_layerdrop": 0.0,
    "decoder_layerdrop": 0.0,
    "init_std": 0.8,
}
FAIRSEQ = ["<s>", "<pad>", "</s>", "<unk>"]
FAIRSEQ_IDS = {"bos_token_id": 0, "pad_token_id": 1, "eos_token_id": 2, "forced_eos_token_id": None}


@dataclass(frozen=True)
class Family:
    """How a family is made, and the languages that its model is given."""

    build: Callable[[Path], tuple[Any, Any]]
    """Model and tokenizer; the folder is for a tokenizer that is made from files."""
    languages: Languages = Languages()  # noqa: RUF009 - frozen
    opening: str | None = None
    """The token that generation is made to begin with."""


def _bart(folder: Path) -> tuple[Any, Any]:
    config = BartConfig(
        vocab_size=8, max_position_embeddings=POSITIONS, decoder_start_token_id=2, **FAIRSEQ_IDS, **SMALL
    )
    return BartForConditionalGeneration(config), _byte_level()


def _led(folder: Path) -> tuple[Any, Any]:
    config = LEDConfig(
        vocab_size=8,
        max_encoder_position_embeddings=POSITIONS,
        max_decoder_position_embeddings=POSITIONS,
        attention_window=WINDOW,
        decoder_start_token_id=2,
        **FAIRSEQ_IDS,
        **SMALL,
    )
    return LEDForConditionalGeneration(config), _byte_level()


def _byte_level() -> Any:
    """BART's and LED's: every byte a token, <s> before and </s> behind."""
    vocabulary = {token: number for number, token in enumerate([*FAIRSEQ, "Ġ", *WORDS])}
    return BartTokenizer(vocab=vocabulary, merges=[], mask_token="<unk>")


def _mbart(folder: Path) -> tuple[Any, Any]:
    tokenizer = MBartTokenizer(vocab=_pieces(FAIRSEQ))
    config = MBartConfig(vocab_size=len(tokenizer), max_position_embeddings=POSITIONS, **FAIRSEQ_IDS, **SMALL)
    return MBartForConditionalGeneration(config), tokenizer


def _mbart50(folder: Path) -> tuple[Any, Any]:
    tokenizer = MBart50Tokenizer(vocab=_pieces(["<unk>", "<s>", "</s>"]))
    config = MBartConfig(
        vocab_size=len(tokenizer),
        max_position_embeddings=POSITIONS,
        decoder_start_token_id=2,
        **FAIRSEQ_IDS,
        **SMALL,
    )
    return MBartForConditionalGeneration(config), tokenizer


def _m2m100(folder: Path) -> tuple[Any, Any]:
    vocabulary = {token: number for number, token in enumerate([*FAIRSEQ, *_words()])}
    (folder / "vocab.json").write_text(json.dumps(vocabulary), encoding="utf-8")
    _sentencepiece(folder / "words.model")
    tokenizer = M2M100Tokenizer(str(folder / "vocab.json"), str(folder / "words.model"))
    return _m2m100_model(len(vocabulary) + len(tokenizer.lang_code_to_id) + 8), tokenizer


def _nllb(folder: Path) -> tuple[Any, Any]:
    vocabulary = {token: number for number, token in enumerate([*FAIRSEQ, "▁", *WORDS, *_words()])}
    merges = [("▁", word) for word in WORDS]
    codes = ["eng_Latn", "ron_Latn"]
    tokenizer = NllbTokenizer(vocab=vocabulary, merges=merges, extra_special_tokens=codes)
    return _m2m100_model(len(tokenizer)), tokenizer


def _m2m100_model(vocab_size: int) -> Any:
    config = M2M100Config(
        vocab_size=vocab_size,
        max_position_embeddings=POSITIONS,
        decoder_start_token_id=2,
        **FAIRSEQ_IDS,
        **SMALL,
    )
    return M2M100ForConditionalGeneration(config)


def _pegasus(folder: Path) -> tuple[Any, Any]:
    tokenizer = PegasusTokenizer(vocab=_pieces(["<pad>", "</s>", "<mask_1>", "<mask_2>", "<unk_2>", "<unk>"]), offset=3)
    config = PegasusConfig(
        vocab_size=len(tokenizer),
        max_position_embeddings=POSITIONS,
        pad_token_id=0,
        eos_token_id=1,
        decoder_start_token_id=0,
        forced_eos_token_id=None,
        **SMALL,
    )
    return PegasusForConditionalGeneration(config), tokenizer


def _marian(folder: Path) -> tuple[Any, Any]:
    """The end token comes first and padding last; generation starts with padding, which is never written."""
    vocabulary = {token: number for number, token in enumerate(["</s>", "<unk>", *_words(), "<pad>"])}
    (folder / "vocab.json").write_text(json.dumps(vocabulary), encoding="utf-8")
    _sentencepiece(folder / "words.spm")
    spm = str(folder / "words.spm")
    tokenizer = MarianTokenizer(spm, spm, str(folder / "vocab.json"))
    pad = len(vocabulary) - 1
    config = MarianConfig(
        vocab_size=len(vocabulary),
        decoder_vocab_size=len(vocabulary),
        max_position_embeddings=POSITIONS,
        pad_token_id=pad,
        eos_token_id=0,
        decoder_start_token_id=pad,
        forced_eos_token_id=None,
        **SMALL,
    )
    model = MarianMTModel(config)
    model.generation_config.bad_words_ids = [[pad]]
    return model, tokenizer


def _t5(
    folder: Path, config_class: Any = T5Config, model_class: Any = T5ForConditionalGeneration, **changes: Any
) -> Any:
    tokenizer = T5Tokenizer(vocab=_pieces(["<pad>", "</s>", "<unk>"]), extra_ids=2)
    return model_class(_t5_config(len(tokenizer) + 3, config_class, **changes)), tokenizer


def _byt5(folder: Path) -> tuple[Any, Any]:
    tokenizer = ByT5Tokenizer()
    changes = {"feed_forward_proj": "gated-gelu", "tie_word_embeddings": False}
    return T5ForConditionalGeneration(_t5_config(len(tokenizer), **changes)), tokenizer


def _t5_config(vocab_size: int, config_class: Any = T5Config, **changes: Any) -> Any:
    """More embeddings than tokens, as T5's are padded to a round number."""
    return config_class(
        vocab_size=vocab_size,
        d_model=8,
        d_kv=4,
        d_ff=16,
        num_layers=2,
        num_heads=2,
        relative_attention_num_buckets=8,
        relative_attention_max_distance=12,
        initializer_factor=2.0,
        dropout_rate=0.0,
        decoder_start_token_id=0,
        pad_token_id=0,
        eos_token_id=1,
        **changes,
    )


def _words() -> list[str]:
    return [f"▁{word}" for word in WORDS]


def _pieces(specials: list[str]) -> list[tuple[str, float]]:
    """A unigram vocabulary: pieces with their scores."""
    return [*((token, 0.0) for token in specials), *((word, -1.0) for word in _words()), ("▁", -9.0)]


def _sentencepiece(path: Path) -> None:
    """A SentencePiece model of the three words."""
    with path.open("wb") as file:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=iter([" ".join(WORDS)] * 4),
            model_writer=file,
            model_type="word",
            vocab_size=len(WORDS) + 3,
            hard_vocab_limit=False,
            minloglevel=3,
        )


_GATED = {"feed_forward_proj": "gated-gelu", "tie_word_embeddings": False}
FAMILIES: dict[str, Family] = {
    "BART": Family(_bart),
    "mBART": Family(_mbart, Languages("en_XX", "ro_RO")),
    "mBART-50": Family(_mbart50, Languages("en_XX", "ro_RO"), opening="ro_RO"),
    "M2M100": Family(_m2m100, Languages("en", "ro"), opening="__ro__"),
    "NLLB": Family(_nllb, Languages("eng_Latn", "ron_Latn"), opening="ron_Latn"),
    "T5": Family(_t5),
    "T5 v1.1, Flan-T5": Family(partial(_t5, **_GATED)),
    "byT5": Family(_byt5),
    "mT5": Family(partial(_t5, config_class=MT5Config, model_class=MT5ForConditionalGeneration, **_GATED)),
    "umT5": Family(partial(_t5, config_class=UMT5Config, model_class=UMT5ForConditionalGeneration, **_GATED)),
    "Pegasus": Family(_pegasus),
    "LED": Family(_led),
    "Marian": Family(_marian),
}
SEED = 73


def save_family(name: str, folder: Path) -> Path:
    """Write the family's model and tokenizer as transformers would, and return the folder."""
    folder.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(SEED)
    model, tokenizer = FAMILIES[name].build(folder)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def open_family(name: str, folder: Path, **options: Any) -> Seq2SeqGenerator:
    """The saved model as a generator with its languages set; `options` are for transformers' from_pretrained."""
    model = AutoModelForSeq2SeqLM.from_pretrained(folder, **options).eval()
    tokenizer = AutoTokenizer.from_pretrained(folder)
    set_languages(model, tokenizer, FAMILIES[name].languages, str(folder))
    return Seq2SeqGenerator(model, tokenizer)
