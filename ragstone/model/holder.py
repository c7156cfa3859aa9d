"""A question encoder and a generator on disk, under the names that transformers' RAG checkpoints use.

transformers' own Rag classes have no decoder-only generators, and their module imports datasets and pandas.
"""

from __future__ import annotations

from typing import Any

from transformers import PreTrainedModel, RagConfig

from ragstone.encoders.load import encoder_class
from ragstone.model.architecture import auto_class


class _Holding(PreTrainedModel):
    config_class = RagConfig
    base_model_prefix = "rag"
    _supports_sdpa = True
    _supports_flash_attn = True

    @classmethod
    def is_custom_code(cls) -> bool:
        """False: in others' code, transformers leaves unset what no checkpoint holds (Falcon-H1's factors)."""
        return False


class RagParts(_Holding):
    """Both models, as transformers' RagModel holds them."""

    def __init__(self, config: Any, question_encoder: Any = None, generator: Any = None) -> None:
        """Parts that are not given are made from their configs, for from_pretrained to fill."""
        super().__init__(config)
        if question_encoder is None:
            kind = encoder_class(config.question_encoder)
            # As transformers' auto classes do, which are asked by the public name.
            make = getattr(kind, "_from_config", None) or kind.from_config
            question_encoder = make(config.question_encoder)
        if generator is None:
            generator = auto_class(config.generator, "The generator").from_config(config.generator)
        self.question_encoder = question_encoder
        self.generator = generator
        self.post_init()


class Holder(_Holding):
    """As transformers' RagSequenceForGeneration and RagTokenForGeneration hold both."""

    def __init__(self, config: Any, question_encoder: Any = None, generator: Any = None) -> None:
        """See RagParts."""
        super().__init__(config)
        self.rag = RagParts(config, question_encoder, generator)
        self.post_init()
