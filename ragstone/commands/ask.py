"""ragstone ask: questions to answers with their passages."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Literal

from ragstone.errors import InputError

if TYPE_CHECKING:
    from ragstone.model.answers import Answer


@dataclass(frozen=True)
class AskSettings:
    model_name_or_path: str
    """Checkpoint to ask."""
    question: str | None = None
    """The question; without it, questions are read from standard input, one per line."""
    model_type: Literal["rag_sequence", "rag_token"] | None = None
    """Another way to marginalise than the checkpoint's."""
    passages_path: str | None = None
    """Knowledge source; the checkpoint's own where not given."""
    index_path: str | None = None
    """Index file, if it is not beside the passages."""
    index_name: str | None = None
    """As in the reference; custom where --passages_path is given."""
    n_docs: int | None = None
    """Passages per question; the checkpoint's number where not given."""
    num_beams: int = 4
    """Beams of the search; 1 is greedy search."""
    min_length: int = 1
    """Tokens an answer has at least."""
    max_length: int = 50
    """Tokens an answer has at most."""
    json: bool = False
    """Print one JSON object per question."""


def ask(settings: AskSettings) -> Iterator[tuple[str, Answer, bool]]:
    """Ask a checkpoint; answers come with score and passages. Yields question, answer, and whether to print JSON."""
    from ragstone.model.decoding import Decoding
    from ragstone.model.open import ModelRequest, open_model

    decoding = Decoding(settings.num_beams, settings.min_length, settings.max_length)
    model = open_model(
        ModelRequest(
            settings.model_name_or_path,
            model_type=settings.model_type,
            passages_path=settings.passages_path,
            index_path=settings.index_path,
            index_name=settings.index_name,
            n_docs=settings.n_docs,
        )
    )
    for question in _questions(settings):
        yield question, model.generate([question], decoding)[0][0], settings.json


def show(result: Iterator[tuple[str, Answer, bool]]) -> None:
    """Print each answer as soon as it is there."""
    for question, answer, as_json in result:
        print(_as_json(question, answer) if as_json else _as_text(question, answer), flush=True)


def _questions(settings: AskSettings) -> Iterator[str]:
    if settings.question is not None:
        if not settings.question.strip():
            raise InputError("--question is empty; write a question.")
        yield settings.question
        return
    if sys.stdin.isatty():
        print("Questions, one per line; end with Ctrl-D.", file=sys.stderr)
    for line in sys.stdin:
        if line.strip():
            yield line.strip()


def _as_json(question: str, answer: Answer) -> str:
    passages = [
        {**asdict(p.passage), "score": p.score, "prior": p.prior, "posterior": p.posterior} for p in answer.passages
    ]
    record = {"question": question, "answer": answer.text, "score": answer.score, "passages": passages}
    return json.dumps(record, ensure_ascii=False)


def _as_text(question: str, answer: Answer) -> str:
    lines = [f"Q: {question}", f"A: {answer.text}   (log p(answer) {answer.score:.3f})"]
    if answer.passages:
        lines.append("   prior  posterior  passage")
    for p in answer.passages:
        text = p.passage.text if len(p.passage.text) <= 160 else p.passage.text[:157] + "..."
        lines.append(f"   {p.prior:5.3f}  {p.posterior:9.3f}  [{p.passage.id}] {p.passage.title} / {text}")
    return "\n".join(lines) + "\n"
