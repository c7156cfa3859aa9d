"""Checkpoints of the structure of facebook/rag-*: DPR's question encoder and BART-large, with random weights.

config.json has the keys that releases of 2020 wrote, tokenizers are vocabularies that do not say of which class they
are, and weights are safetensors or, as then, pickled: with DPR's pooler, with buffers that are no weights any more, and
without the output layer, which is the embeddings.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from tokenizers.pre_tokenizers import ByteLevel
from transformers import (
    BartConfig,
    BartForConditionalGeneration,
    DPRConfig,
    DPRQuestionEncoder,
    RagConfig,
    RagSequenceForGeneration,
    RagTokenForGeneration,
)

CLASSES = {"rag_sequence": RagSequenceForGeneration, "rag_token": RagTokenForGeneration}
WORDS = "who founded the town of river what is blue a king stone bridge otto anna 's s ? ' . , /".split()  # noqa: SIM905


@dataclass(frozen=True)
class Size:
    """How large the two models are."""

    dpr: dict[str, int]
    bart: dict[str, Any]


TINY = Size(
    {"vocab_size": 60, "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32},
    {
        "vocab_size": 261,
        "d_model": 16,
        "encoder_layers": 1,
        "decoder_layers": 1,
        "encoder_ffn_dim": 32,
        "encoder_attention_heads": 2,
        "decoder_attention_heads": 2,
        "decoder_ffn_dim": 32,
        "init_std": 0.5,
    },
)
REAL = Size({}, {})
"""BERT-base and BART-large: transformers' own defaults."""

# What a release of 2020 wrote into every model's config, whether it was set or not.
OF_ITS_TIME: dict[str, Any] = {
    "_num_labels": 3,
    "add_cross_attention": False,
    "bad_words_ids": None,
    "chunk_size_feed_forward": 0,
    "do_sample": False,
    "early_stopping": False,
    "finetuning_task": None,
    "is_decoder": False,
    "length_penalty": 1.0,
    "max_length": 20,
    "min_length": 0,
    "no_repeat_ngram_size": 0,
    "num_beams": 1,
    "num_return_sequences": 1,
    "output_attentions": False,
    "output_hidden_states": False,
    "pruned_heads": {},
    "repetition_penalty": 1.0,
    "return_dict": False,
    "sep_token_id": None,
    "temperature": 1.0,
    "tie_encoder_decoder": False,
    "top_k": 50,
    "tokenizer_class": None,
    "top_p": 1.0,
    "torchscript": False,
    "use_bfloat16": False,
    "xla_device": None,
}
OF_BART: dict[str, Any] = {
    "activation_dropout": 0.0,
    "activation_function": "gelu",
    "add_bias_logits": False,
    "classif_dropout": 0.0,
    "add_final_layer_norm": False,
    "architectures": ["BartModel", "BartForMaskedLM"],
    "extra_pos_embeddings": 2,
    "force_bos_token_to_be_generated": False,
    "forced_eos_token_id": 2,
    "gradient_checkpointing": False,
    "normalize_before": False,
    "normalize_embedding": True,
    "prefix": " ",
    "scale_embedding": False,
    "static_position_embeddings": False,
    "bos_token_id": 0,
    "pad_token_id": 1,
    "eos_token_id": 2,
    "decoder_start_token_id": 2,
    "is_encoder_decoder": True,
    "model_type": "bart",
    "num_hidden_layers": 12,
    "task_specific_params": {
        "summarization": {"length_penalty": 1.0, "max_length": 128, "min_length": 12, "num_beams": 4},
        "summarization_cnn": {"length_penalty": 2.0, "max_length": 142, "min_length": 56, "num_beams": 4},
    },
}
OF_DPR: dict[str, Any] = {
    "attention_probs_dropout_prob": 0.1,
    "hidden_act": "gelu",
    "hidden_dropout_prob": 0.1,
    "model_type": "dpr",
    "initializer_range": 0.02,
    "layer_norm_eps": 1e-12,
    "pad_token_id": 0,
    "projection_dim": 0,
    "architectures": ["DPRQuestionEncoder"],
    "gradient_checkpointing": False,
    "type_vocab_size": 2,
}


def write_published(
    folder: Path, model_type: str, weights: Literal["pickled", "safetensors"], size: Size = TINY, **config_keys: Any
) -> Any:
    """Write a checkpoint into `folder` and return transformers' model of it, in evaluation mode."""
    torch.manual_seed(0)
    dpr, bart = DPRConfig(**size.dpr), BartConfig(**size.bart, forced_eos_token_id=2)
    config = RagConfig.from_question_encoder_generator_configs(dpr, bart)
    with torch.device("cpu"):
        encoder, generator = DPRQuestionEncoder(dpr), BartForConditionalGeneration(bart)
    model = CLASSES[model_type](config=config, question_encoder=encoder, generator=generator).eval()
    folder.mkdir(parents=True)
    if weights == "safetensors":
        model.save_pretrained(folder)
    else:
        torch.save(_as_of_2020(model.state_dict(), dpr), folder / "pytorch_model.bin")
    record = _config(dpr.to_dict(), bart.to_dict(), CLASSES[model_type].__name__)
    (folder / "config.json").write_text(json.dumps({**record, **config_keys}, indent=2), encoding="utf-8")
    _write_tokenizers(folder, dpr.vocab_size, bart.vocab_size)
    return model


def _config(dpr: dict[str, Any], bart: dict[str, Any], architecture: str) -> dict[str, Any]:
    sizes = ("vocab_size", "hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size")
    encoder = {**OF_ITS_TIME, **OF_DPR, **{name: dpr[name] for name in (*sizes, "max_position_embeddings")}}
    sizes = ("encoder_layers", "decoder_layers", "encoder_attention_heads", "decoder_attention_heads")
    sizes = (*sizes, "vocab_size", "d_model", "encoder_ffn_dim", "decoder_ffn_dim", "max_position_embeddings")
    rates = ("dropout", "attention_dropout", "encoder_layerdrop", "decoder_layerdrop", "init_std")
    generator = {**OF_ITS_TIME, **OF_BART, **{name: bart[name] for name in (*sizes, *rates)}}
    generator["num_hidden_layers"] = bart["encoder_layers"]
    return {
        "architectures": [architecture],
        "model_type": "rag",
        "is_encoder_decoder": True,
        "use_cache": True,
        "dataset": "wiki_dpr",
        "dataset_split": "train",
        "index_name": "exact",
        "index_path": None,
        "do_deduplication": True,
        "do_marginalize": False,
        "exclude_bos_score": False,
        "label_smoothing": 0.0,
        "doc_sep": " // ",
        "title_sep": " / ",
        "max_combined_length": 300,
        "n_docs": 5,
        "passages_path": None,
        "output_retrieved": False,
        "reduce_loss": False,
        "retrieval_batch_size": 8,
        "use_dummy_dataset": False,
        "retrieval_vector_size": dpr["hidden_size"],
        "vocab_size": bart["vocab_size"],
        "question_encoder": encoder,
        "generator": generator,
    }


def _as_of_2020(state: dict[str, torch.Tensor], dpr: DPRConfig) -> dict[str, torch.Tensor]:
    """The state as releases of then named and saved it."""
    bert = "rag.question_encoder.question_encoder.bert_model"
    old = {name: tensor for name, tensor in state.items() if not name.endswith("lm_head.weight")}
    old[f"{bert}.embeddings.position_ids"] = torch.arange(dpr.max_position_embeddings).unsqueeze(0)
    old[f"{bert}.pooler.dense.weight"] = torch.zeros(dpr.hidden_size, dpr.hidden_size)
    old[f"{bert}.pooler.dense.bias"] = torch.zeros(dpr.hidden_size)
    return old


def _write_tokenizers(folder: Path, dpr_size: int, bart_size: int) -> None:
    question, generator = folder / "question_encoder_tokenizer", folder / "generator_tokenizer"
    question.mkdir()
    generator.mkdir()
    letters = [f"{before}{letter}" for letter in "abeghinorst" for before in ("", "##")]
    pieces = dict.fromkeys(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *WORDS, *letters])
    pieces = [*pieces, *(f"[unused{number}]" for number in range(dpr_size - len(pieces)))]
    (question / "vocab.txt").write_text("\n".join(pieces) + "\n", encoding="utf-8")
    (question / "tokenizer_config.json").write_text('{"do_lower_case": true, "model_max_length": 512}')
    names = {"unk_token": "[UNK]", "sep_token": "[SEP]", "pad_token": "[PAD]", "cls_token": "[CLS]"}
    (question / "special_tokens_map.json").write_text(json.dumps({**names, "mask_token": "[MASK]"}))
    tokens = ["<s>", "<pad>", "</s>", "<unk>", *sorted(ByteLevel.alphabet()), "<mask>"]
    tokens = [*tokens, *(f"madeupword{number:05d}" for number in range(bart_size - len(tokens)))]
    vocabulary = {token: number for number, token in enumerate(tokens)}
    (generator / "vocab.json").write_text(json.dumps(vocabulary), encoding="utf-8")
    (generator / "merges.txt").write_text("#version: 0.2\n", encoding="utf-8")
    (generator / "tokenizer_config.json").write_text('{"model_max_length": 1024}')
    names = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>", "sep_token": "</s>", "pad_token": "<pad>"}
    (generator / "special_tokens_map.json").write_text(
        json.dumps({**names, "cls_token": "<s>", "mask_token": "<mask>"})
    )
