"""A question encoder and a decoder-only generator on disk, under the names that transformers' RAG checkpoints use."""

from __future__ import annotations

from typing import Any

from transformers import AutoModel, AutoModelForCausalLM
from transformers.models.rag.modeling_rag import RagModel, RagPreTrainedModel


class CausalRag(RagPreTrainedModel):
    """As RagSequenceForGeneration holds a sequence-to-sequence generator; transformers itself has no such class."""

    def __init__(self, config: Any, question_encoder: Any = None, generator: Any = None) -> None:
        """Parts that are not given are made from their configs, for from_pretrained to fill."""
        super().__init__(config)
        if question_encoder is None:
            question_encoder = AutoModel.from_config(config.question_encoder)
        if generator is None:
            generator = AutoModelForCausalLM.from_config(config.generator)
        self.rag = RagModel(config=config, question_encoder=question_encoder, generator=generator)
        self.post_init()

    @classmethod
    def is_custom_code(cls) -> bool:
        """False: in others' code, transformers leaves unset what no checkpoint holds (Falcon-H1's factors)."""
        return False
