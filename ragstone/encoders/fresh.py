"""Small text encoders without pretraining, and tokenizers for them: they learn from one's own data alone.

A word that training never saw must still be recognised in a passage, so that questions about new entities find them.
Hence lower-cased pieces of words, and weights that start out keeping different pieces far apart.
"""

from __future__ import annotations

import string
from collections.abc import Iterable
from typing import Any

import torch

from ragstone.encoders.text_encoder import EncoderSettings, TextEncoder
from ragstone.progress import activity

SPECIAL_TOKENS = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")


def train_tokenizer(texts: Iterable[str], vocab_size: int) -> Any:
    """Learn a lower-casing WordPiece tokenizer like BERT's: [CLS] a [SEP], or [CLS] a [SEP] b [SEP].

    Returns:
        A transformers tokenizer with at most `vocab_size` pieces, which AutoTokenizer opens after save_pretrained.
        English letters and digits are always among them, so that no new English word is unknown.
    """
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, trainers
    from transformers import BertTokenizer

    learner = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    learner.normalizer = normalizers.BertNormalizer(lowercase=True)
    learner.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    letters = string.ascii_lowercase + string.digits
    trainer = trainers.WordPieceTrainer(
        vocab_size=vocab_size,
        show_progress=False,
        special_tokens=[*SPECIAL_TOKENS, *letters, *(f"##{letter}" for letter in letters)],
    )
    with activity("Learning a tokenizer"):
        learner.train_from_iterator(texts, trainer)
    return BertTokenizer(vocab=learner.get_vocab(), do_lower_case=True)


def fresh_encoder(
    tokenizer: Any,
    *,
    hidden_size: int = 128,
    layers: int = 1,
    heads: int = 4,
    max_length: int = 512,
    seed: int = 42,
    name: str = "a fresh encoder",
) -> TextEncoder:
    """A small BERT with mean pooling over `tokenizer`'s pieces, newly initialised.

    Weights start at a standard deviation of 1/sqrt(hidden_size): embeddings of different pieces are then nearly
    orthogonal and of length one, and two texts that share pieces score high from the first step. BERT's usual 0.02
    needs far longer to get there. The same `seed` gives the same weights.
    """
    from transformers import BertConfig, BertModel

    config = BertConfig(
        vocab_size=len(tokenizer),
        hidden_size=hidden_size,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        intermediate_size=4 * hidden_size,
        max_position_embeddings=max_length,
        initializer_range=hidden_size**-0.5,
        pad_token_id=tokenizer.pad_token_id,
    )
    with torch.random.fork_rng([]):
        torch.manual_seed(seed)
        model = BertModel(config, add_pooling_layer=False)
    tokenizer.model_max_length = max_length
    return TextEncoder(model.eval(), tokenizer, EncoderSettings("mean", max_length=max_length), name)
