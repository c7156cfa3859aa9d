"""Predictions on disk: a line per question, the passages behind them, and a record of what made them.

The line is the reference's (eval_rag.py): an answer, or the titles of the passages found, best first, separated by
tabs. Beside PREDICTIONS stand PREDICTIONS.jsonl with the passages and PREDICTIONS.json with the record.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from ragstone.data.lines import read_lines, spaced
from ragstone.errors import InputError
from ragstone.knowledge.manifest import checksum
from ragstone.model.answers import Answer, ScoredPassage
from ragstone.types import Passage

EvalMode = Literal["e2e", "retrieval"]


@dataclass(frozen=True)
class Prediction:
    """What a model gave for one question."""

    question: str
    line: str
    """What stands in the predictions file, without line break."""
    passages: tuple[ScoredPassage, ...]
    """Best first; none without retrieval."""


@dataclass(frozen=True)
class Origin:
    """What made predictions."""

    eval_mode: EvalMode
    questions: str
    """`questions_fingerprint` of the evaluation set."""
    model: str
    """Folder or hub name; not compared, since a folder may move."""
    model_type: str
    model_fingerprint: str
    """Of the model's weights and settings."""
    source_fingerprint: str | None
    """Of the knowledge source; None without retrieval."""
    settings: Mapping[str, int | float | str]
    """The flags that change predictions, with the values in force."""

    def differences(self, wanted: Origin) -> list[str]:
        """In words, what keeps predictions of this origin from being used where `wanted` is asked for."""
        found = self.other_task(wanted.eval_mode, wanted.questions)
        if self.model_type != wanted.model_type:
            found.append(f"the model type ({self.model_type} then, {wanted.model_type} now)")
        elif self.model_fingerprint != wanted.model_fingerprint:
            found.append(f"the model's weights or settings ({self.model} then, {wanted.model} now)")
        if self.source_fingerprint != wanted.source_fingerprint:
            found.append("the knowledge source")
        for name in sorted({*self.settings, *wanted.settings}):
            then, now = self.settings.get(name), wanted.settings.get(name)
            if then != now:
                found.append(f"--{name} ({then} then, {now} now)")
        return found

    def other_task(self, eval_mode: EvalMode, questions: str) -> list[str]:
        """In words, how mode and questions differ."""
        found = []
        if self.eval_mode != eval_mode:
            found.append(f"--eval_mode ({self.eval_mode} then, {eval_mode} now)")
        if self.questions != questions:
            found.append("the evaluation set")
        return found


class PredictionFile:
    """A predictions file with what stands beside it. Nothing is read before it is asked for."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def beside(self, ending: str) -> Path:
        """The file that has this one's name and `ending`."""
        return self.path.with_name(f"{self.path.name}.{ending}")

    def exists(self) -> bool:
        return self.path.exists()

    def origin(self) -> Origin | None:
        """What made the predictions; None for a file without a record, made by hand or by other software.

        Raises:
            InputError: the record is damaged, or the predictions or passages are not those that it was written with.
        """
        record = self.beside("json")
        if not record.is_file():
            return None
        try:
            values: dict[str, Any] = json.loads(record.read_text(encoding="utf-8"))
            origin = Origin(**{field.name: values[field.name] for field in dataclasses.fields(Origin)})
            files: dict[str, str] = values["files"]
            for path, name in ((self.path, "predictions"), (self.beside("jsonl"), "passages")):
                if not path.is_file() or checksum(path) != files[name]:
                    raise InputError(
                        f"{path} is not as it was written (see {record}); predict anew with --recalculate, or remove "
                        f"{record.name} to have edited predictions scored without a model."
                    )
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise InputError(
                f"{record} is not a record of predictions ({error}); predict anew with --recalculate."
            ) from error
        return origin

    def lines(self, count: int) -> list[str]:
        """The predictions for `count` questions, in order; an empty line is an empty prediction.

        Raises:
            InputError: unreadable, or another number of lines.
        """
        lines = list(read_lines(self.path))
        if len(lines) != count:
            raise InputError(
                f"{self.path} has {len(lines)} lines, but the evaluation set has {count} questions; line i of one "
                "must belong to line i of the other (predict anew with --recalculate)."
            )
        return lines

    def predictions(self, questions: Sequence[str]) -> Iterator[Prediction]:
        """The predictions for `questions` with their passages, streamed; without passages where there is no record."""
        lines = self.lines(len(questions))
        path = self.beside("jsonl")
        if not self.beside("json").is_file():
            yield from (Prediction(question, line, ()) for question, line in zip(questions, lines, strict=True))
            return
        for question, line, text in zip(questions, lines, read_lines(path), strict=True):
            yield Prediction(question, line, tuple(map(_scored_passage, json.loads(text)["passages"])))

    def write(self, predictions: Iterable[Prediction], origin: Origin) -> None:
        """Write predictions as they come; the files appear when all are there, or not at all.

        Raises:
            InputError: the folder cannot be written to.
        """
        targets = {name: self.beside(ending) if ending else self.path for name, ending in _ENDINGS.items()}
        workshop = {name: path.with_name(f".{path.name}.new") for name, path in targets.items()}
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with (
                workshop["predictions"].open("w", encoding="utf-8") as lines,
                workshop["passages"].open("w", encoding="utf-8") as passages,
            ):
                for prediction in predictions:
                    lines.write(prediction.line + "\n")
                    passages.write(_as_json(prediction) + "\n")
            files = {name: checksum(workshop[name]) for name in ("predictions", "passages")}
            record = json.dumps({**dataclasses.asdict(origin), "files": files}, indent=2, ensure_ascii=False)
            workshop["record"].write_text(record + "\n", encoding="utf-8")
            # The record first: if this is cut short, it does not fit what lies beside it, and that will be noticed.
            for name in ("record", "passages", "predictions"):
                workshop[name].replace(targets[name])
        except OSError as error:
            raise InputError(
                f"{self.path} cannot be written: {error.strerror or error}; give another --predictions_path."
            ) from error
        finally:
            for path in workshop.values():
                with contextlib.suppress(OSError):
                    path.unlink(missing_ok=True)


_ENDINGS = {"predictions": "", "passages": "jsonl", "record": "json"}


def answer_prediction(question: str, answer: Answer) -> Prediction:
    """An answer as a prediction; on one line, whatever white space the generator wrote."""
    return Prediction(question, spaced(answer.text), answer.passages)


def titles_prediction(question: str, passages: tuple[ScoredPassage, ...]) -> Prediction:
    """The titles of passages as a prediction."""
    return Prediction(question, "\t".join(_plain_title(found.passage.title) for found in passages), passages)


def questions_fingerprint(questions: Iterable[str]) -> str:
    """A hash of an evaluation set's questions."""
    return hashlib.sha256("\n".join(questions).encode()).hexdigest()[:32]


def _plain_title(title: str) -> str:
    """A title without the quotes that wiki_dpr puts around some, as the reference's strip_title, and on one line."""
    return spaced(title.removeprefix('"').removesuffix('"'))


def _as_json(prediction: Prediction) -> str:
    passages = [
        {
            **found.passage._asdict(),
            "score": found.score,
            "prior": found.prior,
            # JSON has no nan, which stands for "no answer".
            "posterior": None if math.isnan(found.posterior) else found.posterior,
        }
        for found in prediction.passages
    ]
    record = {"question": prediction.question, "prediction": prediction.line, "passages": passages}
    return json.dumps(record, ensure_ascii=False)


def _scored_passage(values: dict[str, Any]) -> ScoredPassage:
    passage = Passage(id=values["id"], title=values["title"], text=values["text"])
    posterior = math.nan if values["posterior"] is None else values["posterior"]
    return ScoredPassage(passage, values["score"], values["prior"], posterior)
