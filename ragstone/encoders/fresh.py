"""Small text encoders without pretraining, and tokenizers for them: they learn from one's own data alone.

A word that training never saw must still be recognised in a passage, so that questions about new entities find them.
Hence lower-cased pieces of words, and weights that start out keeping different pieces far apart.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

SPECIAL_TOKENS = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")


def train_tokenizer(texts: Iterable[str], vocab_size: int, max_length: int = 512) -> Any:
    """Learn a lower-casing WordPiece tokenizer like BERT's: [CLS] a [SEP], or [CLS] a [SEP] b [SEP].

    Returns:
        A transformers tokenizer that AutoTokenizer opens after save_pretrained. It has at most `vocab_size` pieces,
        and cuts texts after `max_length` of them.
    """
