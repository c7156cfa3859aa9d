"""ragstone eval: measure answers or retrieval, with intervals (the reference's eval_rag.py)."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from ragstone.allocation import keeping_freed_memory
from ragstone.arithmetic import Precision, Quantization, WeightType
from ragstone.errors import InputError
from ragstone.importing import importing
from ragstone.knowledge.index_name import refuse_published_index
from ragstone.model.model_type import CLOSED_BOOK, ModelType
from ragstone.retrieval.method import FusionName, MethodRequest, RetrieverName
from ragstone.settings import save_settings

if TYPE_CHECKING:
    from ragstone.evaluation.evaluate import Search, Task
    from ragstone.evaluation.predictions import Prediction, PredictionFile
    from ragstone.evaluation.score import Comparison, Measures, Score
    from ragstone.model.open import ModelRequest


@dataclass(frozen=True)
class EvalSettings:
    evaluation_set: Path
    """Questions, one per line."""
    gold_data_path: Path
    """What is right, one line per question: answers (e2e), or titles separated by tabs (retrieval)."""
    model_name_or_path: str | None = None
    """Checkpoint to evaluate; without it, the predictions in --predictions_path are scored as they are."""
    model_type: ModelType | None = None
    """Another way to marginalise than the checkpoint's; bart and t5 only say what the checkpoint is."""
    eval_mode: Literal["e2e", "retrieval"] = "e2e"
    """e2e measures answers, retrieval the titles of the passages found."""
    gold_data_mode: Literal["qa", "ans"] = "qa"
    """Lines of gold answers: qa is question, tab, list of answers; ans is one answer."""
    gold_answers_path: Path | None = None
    """Retrieval: gold answers besides the gold titles, for recall@k of passages that contain an answer."""
    predictions_path: Path = Path("predictions.txt")
    """Where predictions are kept, and taken from if they fit."""
    recalculate: bool = False
    """Predict anew, whatever is in --predictions_path."""
    compare: Path | None = None
    """Other predictions for the same questions, to test against."""
    eval_all_checkpoints: bool = False
    """Evaluate every checkpoint folder in --model_name_or_path, each with predictions of its own."""
    k: int = 1
    """Titles that precision@k looks at."""
    n_docs: int | None = None
    """Passages per question; the checkpoint's number by default."""
    retriever: RetrieverName | None = None
    """dense: by vectors, bm25: by words, hybrid: by both; default: the checkpoint's, or what the source has."""
    hybrid_fusion: FusionName | None = None
    """How hybrid joins two rankings: sum by scores, rrf by ranks; sum by default."""
    hybrid_weight: float | None = None
    """Weight of the dense scores in --hybrid_fusion sum, between 0 and 1; 0.5 by default."""
    compare_retrievers: list[RetrieverName] | None = None
    """Retrieval: evaluate each of these, with predictions of its own, in one table."""
    passages_path: str | None = None
    """Knowledge source; the checkpoint's own by default."""
    index_path: str | None = None
    """Index file, if it is not beside the passages."""
    index_name: str | None = None
    """exact or compressed: wiki_dpr, which download-knowledge fetched; legacy: an old index, which import-legacy
    converted in --index_path; custom: a knowledge source."""
    use_dummy_dataset: bool = False
    """Search a few passages with made-up vectors, to try the model out."""
    eval_batch_size: int = 8
    """Questions that are answered at once."""
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
    precision: Precision = "auto"
    """Arithmetic of the model; auto is bf16 where the hardware has it."""
    print_predictions: bool = False
    """Print each question with its prediction."""
    print_docs: bool = False
    """Print the passages of each question."""

    def __post_init__(self) -> None:
        for name in ("k", "n_docs", "eval_batch_size"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise InputError(f"--{name} is {value}, but must be at least 1.")
        refuse_published_index(self.index_name, self.passages_path, self.use_dummy_dataset)
        self.methods()
        if self.compare_retrievers is not None and self.eval_mode != "retrieval":
            raise InputError("--compare_retrievers measures what is found: give --eval_mode retrieval with it.")
        if self.compare_retrievers is not None and self.eval_all_checkpoints:
            raise InputError("--compare_retrievers is for one checkpoint; leave --eval_all_checkpoints out.")
        if self.compare_retrievers is not None and self.model_name_or_path is None:
            raise InputError("--compare_retrievers needs --model_name_or_path, the model that retrieves.")
        if self.eval_mode == "e2e" and self.gold_answers_path is not None:
            raise InputError(
                "--gold_answers_path is for --eval_mode retrieval; leave it out: in e2e --gold_data_path has answers."
            )
        if self.eval_mode == "retrieval" and self.model_type in CLOSED_BOOK:
            raise InputError(f"A {self.model_type} model retrieves nothing; leave out --eval_mode retrieval.")
        if self.eval_mode == "retrieval" and self.n_docs is not None and self.k > self.n_docs:
            raise InputError(f"--k {self.k} looks at more titles than --n_docs {self.n_docs} gives; raise --n_docs.")
        if self.model_name_or_path is None and (self.recalculate or self.eval_all_checkpoints):
            flag = "--recalculate" if self.recalculate else "--eval_all_checkpoints"
            raise InputError(f"{flag} needs --model_name_or_path, the model that is to predict.")
        if self.predictions_path.is_dir():
            raise InputError(f"--predictions_path {self.predictions_path} is a folder; give it the path of a file.")
        for name in ("evaluation_set", "gold_data_path", "gold_answers_path", "compare"):
            path = getattr(self, name)
            if path is not None and path.resolve() == self.predictions_path.resolve():
                raise InputError(f"--predictions_path and --{name} are the same file {path}; give two different ones.")

    def methods(self) -> list[MethodRequest]:
        """By what passages are found: one, or all that are to be compared."""
        if self.compare_retrievers is None:
            return [MethodRequest(self.retriever, self.hybrid_fusion, self.hybrid_weight)]
        if self.retriever is not None:
            raise InputError("--retriever names one retriever and --compare_retrievers several; leave one of them out.")
        twice = {name for name in self.compare_retrievers if self.compare_retrievers.count(name) > 1}
        if twice:
            raise InputError(f"--compare_retrievers names {twice.pop()} twice; name each once.")
        if "hybrid" not in self.compare_retrievers and (self.hybrid_fusion or self.hybrid_weight is not None):
            raise InputError(
                "--hybrid_fusion and --hybrid_weight are for hybrid, which --compare_retrievers lacks; leave them out."
            )
        hybrid = MethodRequest("hybrid", self.hybrid_fusion, self.hybrid_weight)
        return [hybrid if name == "hybrid" else MethodRequest(name) for name in self.compare_retrievers]


@dataclass(frozen=True)
class Target:
    """What is evaluated."""

    model: str | None
    """None scores predictions that are there."""
    method: MethodRequest
    predictions_path: Path
    label: str
    """What the table calls it."""


@dataclass(frozen=True)
class Evaluation:
    """The numbers of one model, with one retriever."""

    model: str | None
    """None where nobody knows: predictions without a record, scored without a model."""
    label: str
    """What tells it from the others: the checkpoint's name, or the retriever's."""
    predictions_path: Path
    reused: bool
    """Whether the predictions were there already."""
    scores: Mapping[str, Score]
    """In percent with 95 % intervals: em, f1, precision_at_<k>, recall_at_<k>, mrr_title, mrr_answer."""
    comparisons: Mapping[str, Comparison]
    """With --compare: each metric against that of the other predictions."""


@dataclass(frozen=True)
class Evaluated:
    """One evaluation for each checkpoint or retriever."""

    compared: str
    """What the evaluations differ in: checkpoint or retriever."""
    eval_mode: str
    questions: int
    compare: Path | None
    evaluations: tuple[Evaluation, ...]


@keeping_freed_memory()
def eval(settings: EvalSettings) -> Evaluated:
    """Measure a model's answers (exact match, F1) or its retrieval (precision@k), with 95 % intervals."""
    with importing():
        from ragstone.encoders.precision import autocast, best_device
        from ragstone.evaluation.evaluate import Search, measure, read_task
        from ragstone.evaluation.predictions import PredictionFile
        from ragstone.model.decoding import Decoding
        from ragstone.model.open import refuse_unsearchable

    decoding = Decoding(settings.num_beams, settings.min_length, settings.max_length)
    search = Search(decoding, settings.n_docs, settings.precision, settings.eval_batch_size, settings.torch_dtype)
    task = read_task(
        settings.eval_mode,
        settings.evaluation_set,
        settings.gold_data_path,
        settings.gold_data_mode,
        settings.gold_answers_path,
        settings.k,
    )
    others = None if settings.compare is None else measure(PredictionFile(settings.compare), task)
    # Refuses an arithmetic that this machine lacks before anything is loaded.
    autocast(best_device(), settings.precision)
    targets = _targets(settings)
    if settings.compare_retrievers is not None:
        # Not when the others have been evaluated for hours.
        for target in targets:
            refuse_unsearchable(_request(settings, target, longest_answer=0))
    evaluations = tuple(
        _evaluate(settings, target, PredictionFile(target.predictions_path), task, search, others) for target in targets
    )
    compared = "checkpoint" if settings.compare_retrievers is None else "retriever"
    return Evaluated(compared, settings.eval_mode, len(task.questions), settings.compare, evaluations)


def show(result: Evaluated) -> None:
    """Print the numbers; those of several checkpoints or retrievers as a table."""
    from ragstone.evaluation.score import describe, describe_comparison, label

    if len(result.evaluations) > 1:
        _show_table(result)
    for evaluation in result.evaluations:
        print(f"model        {evaluation.model or 'not known'}")
        if result.compared == "retriever":
            print(f"retriever    {evaluation.label}")
        print(f"questions    {result.questions:,} ({result.eval_mode})")
        print(f"predictions  {evaluation.predictions_path}{' (reused)' if evaluation.reused else ''}")
        for score in evaluation.scores.values():
            print(f"{label(score.name):<12} {describe(score)}")
        if result.compare is not None:
            print(f"against {result.compare}:")
        for comparison in evaluation.comparisons.values():
            print(f"  {describe_comparison(comparison)}")
        print()
    print("Percent, with 95 % bootstrap intervals.")


def _show_table(result: Evaluated) -> None:
    from ragstone.evaluation.score import describe, label

    names = list(dict.fromkeys(name for evaluation in result.evaluations for name in evaluation.scores))
    rows = [[result.compared, *map(label, names)]]
    for evaluation in result.evaluations:
        cells = [describe(evaluation.scores[name]) if name in evaluation.scores else "-" for name in names]
        rows.append([evaluation.label, *cells])
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        print("  ".join(f"{cell:<{width}}" for cell, width in zip(row, widths, strict=True)).rstrip())
    print()


def _targets(settings: EvalSettings) -> list[Target]:
    """Each model and retriever with where its predictions go."""
    name, path, methods = settings.model_name_or_path, settings.predictions_path, settings.methods()
    if settings.compare_retrievers is not None:
        names = [str(method.retriever) for method in methods]
        pairs = zip(methods, names, strict=True)
        return [Target(name, method, path.with_stem(f"{path.stem}.{label}"), label) for method, label in pairs]
    if name is None or not settings.eval_all_checkpoints:
        return [Target(name, methods[0], path, Path(name or "").name)]
    from ragstone.evaluation.checkpoints import find_checkpoints

    return [
        Target(str(folder), methods[0], path.with_stem(f"{path.stem}.{folder.name}"), folder.name)
        for folder in find_checkpoints(Path(name))
    ]


def _evaluate(
    settings: EvalSettings, target: Target, file: PredictionFile, task: Task, search: Search, others: Measures | None
) -> Evaluation:
    from ragstone.evaluation.evaluate import measure
    from ragstone.evaluation.score import compare, summarise

    name = target.model
    reused = file.exists() and not settings.recalculate
    if name is not None:
        _predict(settings, target, name, file, task, search, reused)
    elif not reused:
        raise InputError(f"There are no predictions {file.path}; give --model_name_or_path a model that makes them.")
    measures = measure(file, task)
    if reused:
        for prediction in file.predictions(task.questions):
            _print(settings, prediction)
    comparisons = {} if others is None else compare(measures, others)
    origin = file.origin()
    model = origin.model if name is None and origin is not None else name
    evaluation = Evaluation(model, target.label, file.path, reused, summarise(measures), comparisons)
    _save(settings, evaluation, file, len(task.questions))
    return evaluation


def _predict(
    settings: EvalSettings, target: Target, name: str, file: PredictionFile, task: Task, search: Search, reused: bool
) -> None:
    """Write the model's predictions, or make sure that those in the file are the model's."""
    from ragstone.evaluation.evaluate import origin_of, predict, refuse_other_origin
    from ragstone.model.open import open_model

    longest_answer = search.decoding.longest_answer if task.eval_mode == "e2e" else 0
    model = open_model(_request(settings, target, longest_answer))
    try:
        if task.eval_mode == "retrieval" and 0 < model.n_docs < task.k:
            raise InputError(
                f"--k {task.k} looks at more titles than {name} retrieves ({model.n_docs}); give --n_docs."
            )
        origin = origin_of(model, name, task, search)
        if reused:
            refuse_other_origin(file, origin)
        else:
            file.write(predict(model, task, search, lambda prediction: _print(settings, prediction)), origin)
    finally:
        model.close()


def _request(settings: EvalSettings, target: Target, longest_answer: int) -> ModelRequest:
    from ragstone.model.open import ModelRequest

    return ModelRequest(
        str(target.model),
        model_type=settings.model_type,
        passages_path=settings.passages_path,
        index_path=settings.index_path,
        index_name=settings.index_name,
        use_dummy_dataset=settings.use_dummy_dataset,
        n_docs=settings.n_docs,
        method=target.method,
        longest_answer=longest_answer,
        torch_dtype=settings.torch_dtype,
        quantization=settings.quantization,
    )


def _print(settings: EvalSettings, prediction: Prediction) -> None:
    if settings.print_predictions:
        print(f"Q: {prediction.question} - A: {prediction.line}")
    if settings.print_docs:
        for found in prediction.passages:
            weights = f"prior {found.prior:.3f}"
            if settings.eval_mode == "e2e":
                weights += f", posterior {found.posterior:.3f}"
            print(f"   [{found.passage.id}] {found.passage.title} / {found.passage.text} ({weights})")


def _save(settings: EvalSettings, evaluation: Evaluation, file: PredictionFile, questions: int) -> None:
    """Metrics and settings beside the predictions."""
    from ragstone.output import write_text

    record = {
        "model": evaluation.model,
        "eval_mode": settings.eval_mode,
        **({} if settings.compare_retrievers is None else {"retriever": evaluation.label}),
        "evaluation_set": str(settings.evaluation_set),
        "questions": questions,
        "scores": {name: dataclasses.asdict(score) for name, score in evaluation.scores.items()},
        "compared_with": None if settings.compare is None else str(settings.compare),
        "comparisons": {
            name: {**dataclasses.asdict(comparison), "significant": comparison.significant}
            for name, comparison in evaluation.comparisons.items()
        },
    }
    write_text(file.beside("metrics.json"), json.dumps(record, indent=2, ensure_ascii=False) + "\n")
    save_settings(settings, file.beside("settings.yaml"))
