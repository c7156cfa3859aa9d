"""--model_type of the reference. Imports nothing heavy: settings use it."""

from __future__ import annotations

from typing import Literal, get_args

RagType = Literal["rag_sequence", "rag_token"]
"""How passages are marginalised out: for the whole answer, or for each of its tokens."""
ModelType = Literal[RagType, "bart", "t5"]
"""The same, or a generator alone (closed book)."""
RAG_TYPES: tuple[RagType, ...] = get_args(RagType)
CLOSED_BOOK: tuple[ModelType, ...] = ("bart", "t5")
