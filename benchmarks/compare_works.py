"""What both sides of compare do, how their results must agree, and how many operations it takes at least.

Shapes: B questions, N passages per question, K beams, D dimensions.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.compare_sides import BEAMS, MAX_LENGTH, TARGET_LENGTH, Ragstone, Side
from benchmarks.operations import TRAINING, Generator, bert
from ragstone.model.decoding import Decoding
from ragstone.model.model_type import RagType

TRAINED = 8
SETTLING = 12
"""Steps that a run has made before one is timed: until then, the first takings of memory are felt."""
ANSWERED = 32
CLOSE = 1e-5
"""Of a log-likelihood: what rounding may change."""


@dataclass(frozen=True)
class Inputs:
    """What the works are done with."""

    questions: list[str]
    answers: list[str]
    vectors: np.ndarray
    """[B, D] vectors that stand for questions: those of passages."""
    documents: Path
    """A file with passages to embed, each a document."""
    asked: Path
    """A file with a question per line."""
    expected: Path
    """Their answers."""


Operations = dict[str, int]
"""Of each part of a model, as benchmarks.timeline names them; see benchmarks.operations."""


@dataclass(frozen=True)
class Work:
    """Something that both sides do."""

    what: str
    do: Callable[[Side, Inputs], Any]
    equal: Callable[[Any, Any, bool], str | None]
    """How far two results agree, in words; None where they do not agree. True: both are computed in fp32."""
    model_type: RagType = "rag_sequence"
    repeats: int = 3
    warms_up: Callable[[Side, Inputs], Any] | None = None
    """A little of the work, done before; where there is none, the whole work is done once before it is timed."""
    settles: Callable[[Side, Inputs], Any] | None = None
    """What comes between the run whose result counts and those that are timed, and before the peak of memory."""
    precise: bool = False
    """Done in fp32 only: nothing in it would be faster in another precision."""
    fresh: bool = False
    """Timed in a fresh process, which opens the model, too."""
    likeliest: bool = False
    """Both sides look for the likeliest answers: in fp32, one that differs must be at least as likely."""
    operations: Callable[[Ragstone, Inputs], Operations] | None = None
    """The floating-point operations that it needs."""


def _same_number(theirs: float, ours: float, exact: bool) -> str | None:
    off = abs(theirs - ours) / abs(theirs)
    return f"losses {theirs:.5f} and {ours:.5f}" if off < (1e-5 if exact else 2e-2) else None


def _same_answers(theirs: Sequence[str], ours: Sequence[str], exact: bool) -> str | None:
    """In fp32 all but one in thirty; see also Work.likeliest."""
    alike = sum(a == b for a, b in zip(theirs, ours, strict=True))
    return f"{alike} of {len(ours)} answers alike" if alike >= (29 / 30 if exact else 0.8) * len(ours) else None


def unlike_answers(side: Ragstone, questions: Sequence[str], theirs: Sequence[str], ours: Sequence[str]) -> str | None:
    """What is to be said of answers that differ, empty where none does; None where one of ours is less likely."""
    said = ""
    for question, reference, answer in zip(questions, theirs, ours, strict=False):
        if reference != answer:
            there, here = (side.log_likelihood(question, text) for text in (reference, answer))
            if here < there - CLOSE * abs(there):
                return None
            said += f"; {answer!r} for {reference!r}, log-likelihoods {here:.4f} and {there:.4f}"
    return said


def _same_passages(theirs: torch.Tensor, ours: torch.Tensor, exact: bool) -> str | None:
    """For each question; those of equal score, such as a text that a source has twice, stand in any order."""
    alike = torch.equal(theirs.sort(dim=1).values, ours.sort(dim=1).values)
    return f"all {ours.numel()} passages alike" if alike else None


def _same_vectors(theirs: np.ndarray, ours: np.ndarray, exact: bool) -> str | None:
    off = np.abs(theirs - ours).max() / np.abs(theirs).max()
    return f"vectors equal to {off:.0e}" if off < (1e-5 if exact else 2e-2) else None


def _step(side: Side, inputs: Inputs) -> float:
    return side.step(inputs.questions[:TRAINED], inputs.answers[:TRAINED])


def _steps(side: Side, inputs: Inputs) -> None:
    """Steps over other questions, or the same again where there are no more."""
    pairs = itertools.islice(itertools.cycle(zip(inputs.questions, inputs.answers, strict=True)), TRAINED, None)
    for _ in range(SETTLING):
        questions, answers = zip(*itertools.islice(pairs, TRAINED), strict=True)
        side.step(list(questions), list(answers))


def _answer(side: Side, inputs: Inputs) -> list[str]:
    return side.answers(inputs.questions[:ANSWERED])


def _answer_two(side: Side, inputs: Inputs) -> list[str]:
    return side.answers(inputs.questions[:2])


def _retrieve(side: Side, inputs: Inputs, again: bool) -> torch.Tensor:
    return side.contexts(inputs.questions[:ANSWERED], inputs.vectors[:ANSWERED], again)


def context_lengths(side: Ragstone, questions: Sequence[str]) -> list[int]:
    """Tokens of each context of `questions`, B·N."""
    model: Any = side.model
    format_ = model.options.context
    texts = format_.texts([[found.passage for found in row] for row in model.retrieve(questions)], questions)
    return [len(ids) for ids in model.generator.context_tokenizer.ids(texts, format_.max_length)]


def candidates(side: Ragstone, questions: Sequence[str]) -> list[list[int]]:
    """Tokens of each of the different answers that the passages of each question propose."""
    model = side.model
    decoding = Decoding(num_beams=BEAMS, max_length=MAX_LENGTH, num_return_sequences=BEAMS * model.n_docs)
    return [[len(answer.labels) for answer in answers] for answers in model.generate(questions, decoding)]


def _question_operations(side: Ragstone, questions: Sequence[str]) -> int:
    encoder = side.model.question_encoder
    config = encoder.model.config
    return sum(bert(config).text(len(ids)) for ids in encoder.token_lists(questions)["input_ids"])


def _answer_operations(
    side: Ragstone, questions: Sequence[str], contexts: Sequence[int], answers: Sequence[Sequence[int]]
) -> Operations:
    """To encode questions and contexts, and to score answers: for each context, the tokens of each of its answers."""
    counter = Generator.of(side.model.generator_model.config)
    return {
        "question encoder": _question_operations(side, questions),
        "encoder": counter.encode(contexts),
        "decoder": counter.decode(contexts, answers),
        "vocabulary": counter.scores(answers),
    }


def _step_operations(side: Ragstone, inputs: Inputs) -> Operations:
    """The way back of the question encoder is the encoder's, as its time is; see benchmarks.timeline.watched."""
    model: Any = side.model
    questions = inputs.questions[:TRAINED]
    contexts = context_lengths(side, questions)
    labels = model.generator.tokenize_targets(inputs.answers[:TRAINED], TARGET_LENGTH)
    targets = [[int(count)] for count in (labels >= 0).sum(dim=1) for _ in range(model.n_docs)]
    forward = _answer_operations(side, questions, contexts, targets)
    asked = forward["question encoder"]
    both = {part: TRAINING * operations for part, operations in forward.items()}
    return both | {"question encoder": asked, "encoder": both["encoder"] + both["question encoder"] - asked}


def _search_operations(side: Ragstone, inputs: Inputs) -> Operations:
    """Beams of the length of the answer that is found in the end."""
    model: Any = side.model
    questions = inputs.questions[:ANSWERED]
    contexts = context_lengths(side, questions)
    decoding = Decoding(num_beams=BEAMS, max_length=MAX_LENGTH)
    lengths = [len(answers[0].labels) for answers in model.generate(questions, decoding)]
    beams = [[length] * BEAMS for length in lengths for _ in range(model.n_docs)]
    return _answer_operations(side, questions, contexts, beams)


def _thorough_operations(side: Ragstone, inputs: Inputs) -> Operations:
    """Beams of the candidates' mean length, and each different candidate scored with all passages of its question."""
    model: Any = side.model
    questions = inputs.questions[:ANSWERED]
    contexts = context_lengths(side, questions)
    proposed = candidates(side, questions)
    rows = [[round(sum(lengths) / len(lengths))] * BEAMS + lengths for lengths in proposed for _ in range(model.n_docs)]
    return _answer_operations(side, questions, contexts, rows)


def _evaluation_operations(side: Ragstone, inputs: Inputs) -> Operations:
    """As for the first questions."""
    questions, first = len(inputs.questions), len(inputs.questions[:ANSWERED])
    return {part: count * questions // first for part, count in _thorough_operations(side, inputs).items()}


def _embedding_operations(side: Ragstone, inputs: Inputs) -> Operations:
    rows = [line.split("\t") for line in inputs.documents.read_text(encoding="utf-8").splitlines()]
    encoder = side.passage_encoder
    tokens = encoder.token_lists([text for _, text in rows], [title for title, _ in rows])["input_ids"]
    return {"encoder": sum(bert(encoder.model.config).text(len(ids)) for ids in tokens)}


_TRAINING = Work(
    f"a fine-tuning step, {TRAINED} questions",
    _step,
    _same_number,
    repeats=7,
    settles=_steps,
    operations=_step_operations,
)
WORKS = {
    "train_sequence": _TRAINING,
    "train_token": dataclasses.replace(_TRAINING, model_type="rag_token"),
    "generate_sequence": Work(
        f"thorough decoding, {BEAMS} beams, {ANSWERED} questions",
        _answer,
        _same_answers,
        repeats=2,
        warms_up=_answer_two,
        likeliest=True,
        operations=_thorough_operations,
    ),
    "generate_token": Work(
        f"beam search, {BEAMS} beams, {ANSWERED} questions",
        _answer,
        _same_answers,
        "rag_token",
        repeats=2,
        warms_up=_answer_two,
        operations=_search_operations,
    ),
    "retrieve": Work(
        f"{ANSWERED} question vectors to tokenised contexts",
        lambda side, inputs: _retrieve(side, inputs, again=False),
        _same_passages,
        repeats=15,
        precise=True,
    ),
    "retrieve_again": Work(
        f"{ANSWERED} question vectors to contexts of passages that were tokenised before",
        lambda side, inputs: _retrieve(side, inputs, again=True),
        _same_passages,
        repeats=15,
        precise=True,
    ),
    "build_knowledge": Work(
        "passages to a knowledge source, BERT-base's shape",
        lambda side, inputs: side.build(inputs.documents),
        _same_vectors,
        repeats=2,
        operations=_embedding_operations,
    ),
    "evaluate": Work(
        f"questions of a file opened, answered with {BEAMS} beams, scored",
        lambda side, inputs: side.evaluate(inputs.asked, inputs.expected),
        _same_answers,
        repeats=1,
        fresh=True,
        likeliest=True,
        operations=_evaluation_operations,
    ),
}
OPEN = "open"
"""The work that is timed from the start of a process."""
