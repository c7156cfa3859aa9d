"""ragstone ask: questions to answers with their passages."""

from __future__ import annotations

import json
import sys
import textwrap
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

from ragstone.arithmetic import Quantization, WeightType
from ragstone.data.lines import BYTE_ORDER_MARK
from ragstone.errors import InputError
from ragstone.importing import importing
from ragstone.knowledge.index_name import refuse_published_index
from ragstone.model.model_type import RagType
from ragstone.retrieval.method import FusionName, MethodRequest, RetrieverName

if TYPE_CHECKING:
    from ragstone.model.answers import Answer

PASSAGE_WIDTH = 160
"""Characters of a passage that are shown; --json gives all."""


@dataclass(frozen=True)
class AskSettings:
    model_name_or_path: str
    """Checkpoint to ask."""
    question: str | None = None
    """The question; without it, questions are read from standard input, one per line."""
    model_type: RagType | None = None
    """Another way to marginalise than the checkpoint's."""
    passages_path: str | None = None
    """Knowledge source; the checkpoint's own by default."""
    index_path: str | None = None
    """Index file, if it is not beside the passages."""
    index_name: str | None = None
    """exact or compressed: wiki_dpr, which download-knowledge fetched; legacy: an old index, which import-legacy
    converted in --index_path; custom: a knowledge source."""
    use_dummy_dataset: bool = False
    """Search a few passages with made-up vectors, to try the model out."""
    n_docs: int | None = None
    """Passages per question; the checkpoint's number by default."""
    retriever: RetrieverName | None = None
    """dense: by vectors, bm25: by words, hybrid: by both; default: the checkpoint's, or what the source has."""
    hybrid_fusion: FusionName | None = None
    """How hybrid joins two rankings: sum by scores, rrf by ranks; sum by default."""
    hybrid_weight: float | None = None
    """Weight of the dense scores in --hybrid_fusion sum, between 0 and 1; 0.5 by default."""
    torch_dtype: WeightType = "float32"
    """Type of the generator's weights: 16 bits take half the memory."""
    quantization: Quantization | None = None
    """Keep the generator's layers in 8 or 4 bits, for less memory."""
    num_beams: int = 4
    """Beams of the search; 1 is greedy search."""
    min_length: int = 1
    """Least number of tokens in an answer, the start token included."""
    max_length: int = 50
    """Greatest number of tokens in an answer, the start token included."""
    json: bool = False
    """Print one JSON object per question, passages in full."""

    def __post_init__(self) -> None:
        if self.question is not None and not self.question.strip():
            raise InputError("--question is empty; write a question.")
        if self.question is not None and not _is_unicode(self.question):
            raise InputError(f"--question {self.question!r} is not UTF-8; write it in UTF-8.")
        if self.n_docs is not None and self.n_docs < 1:
            raise InputError(f"--n_docs is {self.n_docs}, but must be at least 1.")
        refuse_published_index(self.index_name, self.passages_path, self.use_dummy_dataset)
        self.method()

    def method(self) -> MethodRequest:
        """By what passages are found."""
        return MethodRequest(self.retriever, self.hybrid_fusion, self.hybrid_weight)


def ask(settings: AskSettings) -> Iterator[tuple[str, Answer, bool]]:
    """Ask a checkpoint; answers come with score and passages.

    Yields question, answer, and whether to print JSON.
    """
    from ragstone.progress import activity

    with importing():
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
            use_dummy_dataset=settings.use_dummy_dataset,
            n_docs=settings.n_docs,
            method=settings.method(),
            longest_answer=decoding.longest_answer,
            torch_dtype=settings.torch_dtype,
            quantization=settings.quantization,
        )
    )
    try:
        for question in _questions(settings):
            with activity("Answering"):
                answer = model.generate([question], decoding)[0][0]
            yield question, answer, settings.json
    finally:
        model.close()


def show(result: Iterator[tuple[str, Answer, bool]]) -> None:
    """Print each answer as soon as it is there."""
    for question, answer, as_json in result:
        print(_as_json(question, answer) if as_json else _as_text(question, answer), flush=True)


def _questions(settings: AskSettings) -> Iterator[str]:
    if settings.question is not None:
        yield settings.question
        return
    if sys.stdin.isatty():
        print("Questions, one per line; end with Ctrl-D.", file=sys.stderr)
    asked = False
    for number, line in enumerate(sys.stdin.buffer, start=1):
        try:
            text = line.decode("utf-8")
        except UnicodeDecodeError as error:
            raise InputError(
                f"Standard input, line {number}: byte {error.start} of the line is not UTF-8 "
                f"(0x{line[error.start]:02x}); give the questions as UTF-8."
            ) from error
        question = (text.removeprefix(BYTE_ORDER_MARK) if number == 1 else text).strip()
        if question:
            asked = True
            yield question
    if not asked:
        raise InputError("No question came on standard input; give lines with questions, or --question.")


def _is_unicode(text: str) -> bool:
    """Whether `text` came whole from the command line: bytes that are not UTF-8 arrive as lone surrogates."""
    return not any("\ud800" <= character <= "\udfff" for character in text)


def _as_json(question: str, answer: Answer) -> str:
    passages = [
        {**p.passage._asdict(), "score": p.score, "prior": p.prior, "posterior": p.posterior} for p in answer.passages
    ]
    record = {"question": question, "answer": answer.text, "score": answer.score, "passages": passages}
    return json.dumps(record, ensure_ascii=False)


def _as_text(question: str, answer: Answer) -> str:
    lines = [f"Q: {question}", f"A: {answer.text or '(an empty answer)'}   (log p(answer) {answer.score:.3f})"]
    if answer.passages:
        lines.append("   prior  posterior  passage")
    for p in answer.passages:
        text = textwrap.shorten(f"{p.passage.title} / {p.passage.text}", PASSAGE_WIDTH, placeholder=" ...")
        lines.append(f"   {p.prior:5.3f}  {p.posterior:9.3f}  [{p.passage.id}] {text}")
    return "\n".join(lines) + "\n"
