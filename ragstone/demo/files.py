"""An almanac as files: documents, question-answer pairs, and what trains a retriever."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ragstone.demo.almanac import Entity, Question, Wording, ask_about, change_facts, invent_entities, write_article
from ragstone.output import write_lines, write_text

VALIDATED, TESTED = 60, 200
"""Entities that validation and test ask about; training asks about the others."""


def write_almanac(folder: Path, count: int, seed: int, wording: Wording) -> list[Question]:
    """Write an almanac of `count` entities into `folder`; the test questions."""
    entities = invent_entities(count, seed)
    changed = change_facts(entities, seed + 1)
    data = folder / "data"
    data.mkdir()
    _write_documents(folder / "almanac.tsv", entities, seed)
    _write_documents(folder / "almanac_changed.tsv", changed, seed + 1)
    train = entities[VALIDATED + TESTED :]
    parts = {"test": entities[:TESTED], "val": entities[TESTED : TESTED + VALIDATED], "train": train}
    for split, part in parts.items():
        questions = [question for entity in part for question in ask_about(entity, seed, wording)]
        write_lines(data / f"{split}.source", [question.text for question in questions])
        write_lines(data / f"{split}.target", [question.answer for question in questions])
    tested = [question for entity in parts["test"] for question in ask_about(entity, seed, wording)]
    new = [question for entity in changed[:TESTED] for question in ask_about(entity, seed, wording)]
    write_lines(data / "test.pages", [question.entity for question in tested])
    for name, questions in (("test", tested), ("changed", new)):
        write_lines(data / f"{name}.gold_qa.tsv", [f"{q.text}\t{[q.answer]!r}" for q in questions])
    write_text(folder / "retriever.json", json.dumps(_retriever_data(train, seed, wording), indent=1) + "\n")
    return tested


def _write_documents(path: Path, entities: Sequence[Entity], seed: int) -> None:
    write_lines(path, [f"{entity.name}\t{write_article(entity, seed)}" for entity in entities])


def _retriever_data(entities: Sequence[Entity], seed: int, wording: Wording) -> list[dict[str, Any]]:
    """DPR's format; the hard negative is the article whose title comes next in the alphabet, which is most like it."""
    entities = sorted(entities, key=lambda entity: entity.name)
    articles = [{"title": entity.name, "text": write_article(entity, seed)} for entity in entities]
    return [
        {
            "question": question.text,
            "answers": [question.answer],
            "positive_ctxs": [article],
            "negative_ctxs": [],
            "hard_negative_ctxs": [following],
        }
        for entity, article, following in zip(entities, articles, [*articles[1:], articles[0]], strict=True)
        for question in ask_about(entity, seed, wording)
    ]
