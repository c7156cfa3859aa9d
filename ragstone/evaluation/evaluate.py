"""A model on an evaluation set: predictions made, or taken from disk where they fit, and measured against gold."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from ragstone.arithmetic import Precision, WeightType
from ragstone.data.gold import GoldMode, read_gold_answers, read_gold_titles, read_questions
from ragstone.data.lines import spaced
from ragstone.encoders.precision import autocast, best_device, precision_on
from ragstone.errors import InputError
from ragstone.evaluation.metrics import PerQuestion
from ragstone.evaluation.predictions import (
    EvalMode,
    Origin,
    Prediction,
    PredictionFile,
    answer_prediction,
    questions_fingerprint,
    titles_prediction,
)
from ragstone.evaluation.score import Measures, measure_answers, measure_passages, measure_titles
from ragstone.model.decoding import Decoding
from ragstone.model.model import Model, answer_questions, retrieve_passages
from ragstone.progress import track

RECALL_AT = (1, 5, 20, 100)


@dataclass(frozen=True)
class Task:
    """Questions with what is right."""

    eval_mode: EvalMode
    questions: list[str]
    answers: list[tuple[str, ...]] | None
    """Accepted answers; always there in e2e mode."""
    titles: list[tuple[str, ...]] | None
    """Titles that a good retriever finds; always there in retrieval mode, never in e2e."""
    k: int

    @property
    def fingerprint(self) -> str:
        return questions_fingerprint(self.questions)


@dataclass(frozen=True)
class Search:
    """How predictions are made."""

    decoding: Decoding
    n_docs: int | None
    """Passages per question; None leaves it to the model."""
    precision: Precision
    batch_size: int
    torch_dtype: WeightType = "float32"
    """Type of the generator's weights."""


def read_task(
    eval_mode: EvalMode, evaluation_set: Path, gold: Path, gold_mode: GoldMode, gold_answers: Path | None, k: int
) -> Task:
    """Read an evaluation set and its gold.

    Args:
        eval_mode: what the model is to do; in e2e mode `gold` holds answers, in retrieval mode titles.
        evaluation_set: a question per line.
        gold: a line per question.
        gold_mode: how lines of gold answers are read.
        gold_answers: retrieval mode: the answers, if they are known too.
        k: of precision@k.

    Raises:
        InputError: unreadable, malformed, or files of different length.
    """
    questions = read_questions(evaluation_set)
    if eval_mode == "e2e":
        return Task(eval_mode, questions, read_gold_answers(gold, gold_mode, questions), None, k)
    titles = read_gold_titles(gold, questions)
    answers = None if gold_answers is None else read_gold_answers(gold_answers, gold_mode, questions)
    return Task(eval_mode, questions, answers, titles, k)


def origin_of(model: Model, name: str, task: Task, search: Search) -> Origin:
    """What predictions of `model` for `task` would come from."""
    settings: dict[str, int | float | str] = {
        "precision": precision_on(best_device(), search.precision),
        **model.retrieval,
    }
    if model.n_docs:
        settings["n_docs"] = search.n_docs or model.n_docs
    if task.eval_mode == "e2e":
        decoding = search.decoding
        settings |= {name: getattr(decoding, name) for name in ("num_beams", "min_length", "max_length")}
        # Weights that both types hold exactly have one fingerprint.
        settings["torch_dtype"] = search.torch_dtype
    return Origin(
        eval_mode=task.eval_mode,
        questions=task.fingerprint,
        model=name,
        model_type=model.model_type,
        model_fingerprint=model.fingerprint(),
        source_fingerprint=model.source_fingerprint(),
        settings=settings,
    )


def predict(model: Model, task: Task, search: Search, see: Callable[[Prediction], None]) -> Iterator[Prediction]:
    """The model's predictions for a task, in order; `see` is shown each as it is made."""
    with autocast(best_device(), search.precision):
        made: Iterator[Prediction]
        if task.eval_mode == "e2e":
            answers = answer_questions(
                model, task.questions, n_docs=search.n_docs, decoding=search.decoding, batch_size=search.batch_size
            )
            made = (answer_prediction(*pair) for pair in zip(task.questions, answers, strict=True))
        else:
            found = retrieve_passages(model, task.questions, n_docs=search.n_docs, batch_size=search.batch_size)
            made = (titles_prediction(*pair) for pair in zip(task.questions, found, strict=True))
        for prediction in made:
            see(prediction)
            yield prediction


def measure(file: PredictionFile, task: Task) -> Measures:
    """Every metric that the gold and the file allow, one value per question.

    Raises:
        InputError: the predictions do not belong to the task's questions, or are damaged.
    """
    origin = file.origin()
    other = [] if origin is None else origin.other_task(task.eval_mode, task.fingerprint)
    if other:
        raise InputError(
            f"The predictions in {file.path} were made for something else: they differ in {', '.join(other)}; give "
            "others, or predict anew."
        )
    lines = file.lines(len(task.questions))
    measures: dict[str, PerQuestion] = {}
    if task.titles is not None:
        measures |= measure_titles([list(map(spaced, line.split("\t"))) for line in lines], task.titles, task.k)
    elif task.answers is not None:
        measures |= measure_answers(lines, task.answers)
    n_docs = None if origin is None else origin.settings.get("n_docs")
    if task.answers is not None and n_docs is not None:
        texts = (
            [found.passage.text for found in prediction.passages]
            for prediction in track(file.predictions(task.questions), "Looking for answers", len(task.questions))
        )
        measures |= measure_passages(texts, task.answers, _depths(int(n_docs), task.k))
    return measures


def refuse_other_origin(file: PredictionFile, wanted: Origin) -> None:
    """Refuse predictions that something else made.

    Raises:
        InputError: says what differs.
    """
    origin = file.origin()
    if origin is None:
        raise InputError(
            f"{file.path} has no record of what made it ({file.beside('json').name}), so nobody knows whether it fits "
            f"{wanted.model}; predict anew with --recalculate, or leave --model_name_or_path out to score it as it is."
        )
    differences = origin.differences(wanted)
    if differences:
        raise InputError(
            f"The predictions in {file.path} do not fit: they differ in {', '.join(differences)}; predict anew with "
            "--recalculate, or give another --predictions_path."
        )


def _depths(n_docs: int, k: int) -> list[int]:
    """The k of recall@k: customary ones, the k asked for, and all that was retrieved."""
    return sorted(depth for depth in {*RECALL_AT, k, n_docs} if depth <= n_docs)
