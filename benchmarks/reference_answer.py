"""The reference's first answer: transformers' RagSequenceForGeneration with RagRetriever, and nothing of Ragstone.

    python -m benchmarks.reference_answer CHECKPOINT PASSAGES INDEX N_DOCS BEAMS MAX_LENGTH QUESTION

The question encoder pools as Ragstone recorded it in the checkpoint's config.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Any

import torch
from torch import nn
from transformers import RagRetriever, RagSequenceForGeneration
from transformers.models.dpr.modeling_dpr import DPRQuestionEncoderOutput


class Pooled(nn.Module):
    """A BERT-like encoder as transformers' RagModel calls one: the vector is the first thing that it returns."""

    def __init__(self, model: Any, pooling: str, normalize: bool, padding: int) -> None:
        super().__init__()
        self.model = model
        self.pooling = pooling
        self.normalize = normalize
        self.padding = padding

    def forward(
        self, input_ids: torch.Tensor, attention_mask: torch.Tensor | None = None, **_: Any
    ) -> DPRQuestionEncoderOutput:
        if attention_mask is None:
            # RagSequenceForGeneration.generate gives none when it scores its candidates.
            attention_mask = (input_ids != self.padding).long()
        states = self.model(input_ids=input_ids, attention_mask=attention_mask).last_hidden_state
        if self.pooling == "mean":
            weights = attention_mask.unsqueeze(-1).to(states.dtype)
            vectors = (states * weights).sum(1) / weights.sum(1)
        else:
            vectors = states[:, 0]
        return DPRQuestionEncoderOutput(nn.functional.normalize(vectors, dim=-1) if self.normalize else vectors)


def _mask_padding(generator: Any) -> None:
    """Repair what RagSequenceForGeneration.generate gets of padding.

    It lets the generator read the padding of a context as text. And beam search pads answers with the end token where
    the padding token's number is 0, which then counts as text in their scores.
    """
    search, padding = generator.generate, generator.config.pad_token_id
    end = generator.generation_config.eos_token_id

    def masked(ids: torch.Tensor, **options: Any) -> Any:
        found = search(ids, **{**options, "attention_mask": (ids != padding).long()})
        behind = (found[:, 1:] == end).cumsum(dim=1) - (found[:, 1:] == end).long() > 0
        found[:, 1:][behind] = padding
        return found

    generator.generate = masked


def repair(model: Any, question_tokenizer: Any) -> None:
    """Make of a loaded Rag class what the checkpoint says it is: transformers keeps neither how a question encoder that
    is no DPR model pools, nor the generator's own settings, such as its end token."""
    own = getattr(model.config, "ragstone", None) or {}
    recorded = own.get("question_encoder") or {"pooling": "pooler"}
    if recorded["pooling"] != "pooler":
        model.rag.question_encoder = Pooled(
            model.rag.question_encoder, recorded["pooling"], recorded["normalize"], question_tokenizer.pad_token_id
        )
    model.rag.generator.generation_config.update(**(own.get("generation") or {}))
    _mask_padding(model.rag.generator)


def main(arguments: Sequence[str]) -> None:
    """Print the answer to one question."""
    checkpoint, passages_path, index_path, n_docs, beams, max_length, question = arguments
    retriever = RagRetriever.from_pretrained(
        checkpoint, index_name="custom", passages_path=passages_path, index_path=index_path, n_docs=int(n_docs)
    )
    model = RagSequenceForGeneration.from_pretrained(checkpoint, retriever=retriever, n_docs=int(n_docs)).eval()
    repair(model, retriever.question_encoder_tokenizer)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    model = model.to(device)
    inputs = retriever.question_encoder_tokenizer([question], return_tensors="pt").to(device)
    with torch.no_grad():
        found = model.generate(
            input_ids=inputs["input_ids"],
            attention_mask=inputs["attention_mask"],
            num_beams=int(beams),
            min_length=1,
            max_length=int(max_length),
        )
    print(retriever.generator_tokenizer.batch_decode(found, skip_special_tokens=True)[0].strip(), flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
