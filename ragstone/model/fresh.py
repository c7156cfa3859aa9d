"""Small generators without pretraining as generators: they learn to read from one's own data.

A fresh generator answers from passages by copying words that it never saw in training, so its weights must start out
keeping different tokens apart: at a standard deviation of 1/sqrt(d_model), embeddings of different tokens are nearly
orthogonal and of length one. BART's usual 0.02 does not get there in hours. A generator may also start from a text
encoder that knows its language already (Rothe et al. 2020, arXiv 1907.12461).
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch

from ragstone.encoders.load import pretrained, pretrained_tokenizer
from ragstone.errors import InputError

PAD, END, UNKNOWN = "<pad>", "</s>", "<unk>"
WAVELENGTHS = 1000.0
"""Ratio of the longest to the shortest wave of the first position embeddings; contexts are hundreds of tokens long."""


@dataclass(frozen=True)
class GeneratorSize:
    """The shape of a BART."""

    d_model: int = 128
    encoder_layers: int = 2
    decoder_layers: int = 2
    heads: int = 4
    max_length: int = 512
    """Tokens of a context or an answer at most."""
    dropout: float = 0.1


def train_generator_tokenizer(texts: Iterable[str], vocab_size: int) -> Any:
    """Learn a byte-level BPE tokenizer: it can spell any text, in its own case.

    A text begins as if a blank stood before it, so that a name is the same tokens in a passage and in an answer; it
    ends with </s> and has no start token, which an answer would only have to repeat.

    Returns:
        A transformers tokenizer with at most `vocab_size` tokens, which AutoTokenizer opens after save_pretrained.
    """
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    learner = Tokenizer(models.BPE(unk_token=UNKNOWN))
    learner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    learner.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        show_progress=False,
        special_tokens=[PAD, END, UNKNOWN],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
    )
    learner.train_from_iterator(texts, trainer)
    _end_texts_with(learner, END)
    return PreTrainedTokenizerFast(
        tokenizer_object=learner,
        pad_token=PAD,
        eos_token=END,
        unk_token=UNKNOWN,
        model_input_names=["input_ids", "attention_mask"],
    )


def fresh_generator(tokenizer: Any, size: GeneratorSize, seed: int = 42) -> Any:
    """A newly initialised BartForConditionalGeneration for `tokenizer`. The same `seed` gives the same weights."""
    std = size.d_model**-0.5
    model = _new_bart(tokenizer, size, 4 * size.d_model, "gelu", std, seed)
    for stack in (model.model.encoder, model.model.decoder):
        _start_with_sinusoids(stack.embed_positions.weight, std)
    return model


def generator_from_encoder(
    name_or_path: str, encoder_layers: int, decoder_layers: int, dropout: float = 0.1, seed: int = 42
) -> tuple[Any, Any]:
    """A BART whose layers start from those of a BERT-like text encoder, with the encoder's tokenizer.

    BERT's and BART's layers are the same function (residual sum, then normalisation) up to the normalisation's
    epsilon, which makes a difference of some 1e-4. The encoder takes the text encoder's first `encoder_layers` layers,
    the decoder its last `decoder_layers`; attention to the passages starts as a copy of attention within the text,
    which looks for what resembles itself: the first thing that copying needs.

    Returns:
        The generator and its tokenizer.

    Raises:
        InputError: no BERT-like encoder, one with fewer layers, or one without its tokenizer.
    """
    from transformers import AutoModel

    encoder = pretrained(AutoModel, name_or_path, "encoder weights")
    config = encoder.config
    if config.model_type != "bert":
        raise InputError(
            f"{name_or_path} is a {config.model_type} model, but a generator can start only from the layers of a BERT; "
            "give one."
        )
    for name, layers in (("--encoder_layers", encoder_layers), ("--decoder_layers", decoder_layers)):
        if layers > config.num_hidden_layers:
            raise InputError(f"{name} is {layers}, but {name_or_path} has {config.num_hidden_layers} layers; lower it.")
    words = encoder.embeddings.word_embeddings.weight
    tokenizer = _plain_tokenizer(name_or_path, len(words))
    size = GeneratorSize(
        config.hidden_size,
        encoder_layers,
        decoder_layers,
        config.num_attention_heads,
        config.max_position_embeddings - 2,
        dropout,
    )
    std = config.hidden_size**-0.5
    model = _new_bart(tokenizer, size, config.intermediate_size, config.hidden_act, std, seed)
    with torch.no_grad():
        model.model.shared.weight.copy_(words[: len(tokenizer)])
        blocks = list(encoder.encoder.layer)
        _copy_stack(model.model.encoder, encoder.embeddings, blocks[:encoder_layers])
        _copy_stack(model.model.decoder, encoder.embeddings, blocks[-decoder_layers:])
    return model, tokenizer


def _new_bart(tokenizer: Any, size: GeneratorSize, ffn_dim: int, activation: str, std: float, seed: int) -> Any:
    from transformers import BartConfig, BartForConditionalGeneration

    config = BartConfig(
        vocab_size=len(tokenizer),
        d_model=size.d_model,
        encoder_layers=size.encoder_layers,
        decoder_layers=size.decoder_layers,
        encoder_attention_heads=size.heads,
        decoder_attention_heads=size.heads,
        encoder_ffn_dim=ffn_dim,
        decoder_ffn_dim=ffn_dim,
        activation_function=activation,
        max_position_embeddings=size.max_length,
        init_std=std,
        dropout=size.dropout,
        bos_token_id=None,
        pad_token_id=tokenizer.pad_token_id,
        eos_token_id=tokenizer.eos_token_id,
        decoder_start_token_id=tokenizer.eos_token_id,
        forced_eos_token_id=tokenizer.eos_token_id,
    )
    tokenizer.model_max_length = size.max_length
    with torch.random.fork_rng([]):
        torch.manual_seed(seed)
        return BartForConditionalGeneration(config).eval()


@torch.no_grad()
def _start_with_sinusoids(positions: torch.Tensor, scale: float) -> None:
    """Position embeddings [positions, D] that let attention find the token before from anywhere, as copying needs it.

    Vaswani et al. 2017 (arXiv 1706.03762), section 3.5, `scale` times as large. They are trained like all weights.
    """
    count, dimension = positions.shape
    frequencies = torch.exp(torch.arange(0, dimension, 2) * (-math.log(WAVELENGTHS) / dimension))
    angles = torch.arange(count).unsqueeze(1) * frequencies
    positions[:, 0::2] = scale * angles.sin()
    positions[:, 1::2] = scale * angles[:, : dimension // 2].cos()


def _plain_tokenizer(name_or_path: str, rows: int) -> Any:
    """The encoder's tokenizer without its start token: a text ends with [SEP] and has nothing before it.

    Raises:
        InputError: it is not the tokenizer of an encoder with `rows` token embeddings.
    """
    from transformers import PreTrainedTokenizerFast

    known = pretrained_tokenizer(name_or_path)
    # An encoder may have more rows than tokens, to a round number.
    if len(known) > rows:
        raise InputError(
            f"The tokenizer in {name_or_path} has {len(known)} tokens, but the encoder {rows}; save the encoder's own "
            "tokenizer with it."
        )
    core = known.backend_tokenizer
    core.no_truncation()
    core.no_padding()
    _end_texts_with(core, known.sep_token)
    return PreTrainedTokenizerFast(
        tokenizer_object=core,
        pad_token=known.pad_token,
        eos_token=known.sep_token,
        unk_token=known.unk_token,
        mask_token=known.mask_token,
        model_input_names=["input_ids", "attention_mask"],
    )


def _end_texts_with(tokenizer: Any, token: str) -> None:
    from tokenizers import processors

    number = tokenizer.token_to_id(token)
    tokenizer.post_processor = processors.TemplateProcessing(single=f"$A {token}", special_tokens=[(token, number)])


def _copy_stack(stack: Any, embeddings: Any, blocks: list[Any]) -> None:
    """Embeddings and layers of BERT into an encoder or decoder of BART."""
    # BART's positions begin at row 2; BERT adds the same segment vector everywhere.
    positions = embeddings.position_embeddings.weight + embeddings.token_type_embeddings.weight[0]
    stack.embed_positions.weight[2:].copy_(positions[: len(stack.embed_positions.weight) - 2])
    _copy(stack.layernorm_embedding, embeddings.LayerNorm)
    for layer, block in zip(stack.layers, blocks, strict=True):
        attention = block.attention
        _copy_attention(layer.self_attn, attention)
        _copy(layer.self_attn_layer_norm, attention.output.LayerNorm)
        if hasattr(layer, "encoder_attn"):
            _copy_attention(layer.encoder_attn, attention)
            _copy(layer.encoder_attn_layer_norm, attention.output.LayerNorm)
        _copy(layer.fc1, block.intermediate.dense)
        _copy(layer.fc2, block.output.dense)
        _copy(layer.final_layer_norm, block.output.LayerNorm)


def _copy_attention(target: Any, attention: Any) -> None:
    _copy(target.q_proj, attention.self.query)
    _copy(target.k_proj, attention.self.key)
    _copy(target.v_proj, attention.self.value)
    _copy(target.out_proj, attention.output.dense)


def _copy(target: Any, source: Any) -> None:
    target.weight.copy_(source.weight)
    target.bias.copy_(source.bias)
