"""DPR's published encoders, which belong together by name: what can be told of an encoder without its weights."""

from __future__ import annotations

from ragstone.encoders.record import EncoderRecord

PASSAGE_ENCODERS = {
    "nq": "facebook/dpr-ctx_encoder-single-nq-base",
    "multiset": "facebook/dpr-ctx_encoder-multiset-base",
}
"""By the questions that they were trained on."""
COUNTERPARTS = {name.replace("ctx", "question"): name for name in PASSAGE_ENCODERS.values()}
"""From a question encoder to the passage encoder that it was trained with."""


def unlike(built: str, passage: EncoderRecord | None, question: EncoderRecord | None) -> str | None:
    """Why a question encoder cannot belong to the published passage encoder `built`; None where nothing tells.

    Args:
        built: the passage encoder's name.
        passage: the passage encoder that the question encoder belongs to, None where that is not known.
        question: the question encoder as it was before fine-tuning, None where that is not known.
    """
    known = question if passage is None else passage
    if known is None:
        return None
    partner = COUNTERPARTS.get(known.name or "") if passage is None else passage.name
    if partner == built:
        return None
    if partner in PASSAGE_ENCODERS.values():
        return f"belongs to {partner}"
    settings = known.settings or {}
    # DPR takes the first token's state: a BERT with the pooling cls may well be one of its encoders.
    if settings.get("pooling") in ("mean", "last"):
        return f"has vectors of the pooling {settings['pooling']!r}, which DPR does not use"
    if settings.get("normalize"):
        return "has vectors of length one, which DPR does not make"
    return None
