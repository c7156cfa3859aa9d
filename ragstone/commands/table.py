"""The table of commands: what each is for, and the module and names that follow from its own."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

SUMMARIES = {
    "parse-dpr": "turn DPR's data into an evaluation set with gold titles",
    "train-retriever": "fit a question and a passage encoder",
    "build-knowledge": "make a knowledge source from documents",
    "download-knowledge": "fetch wiki_dpr from the hub",
    "import-knowledge": "turn DPR's passages and vectors into a knowledge source",
    "import-legacy": "turn an old pickled DPR index into a knowledge source",
    "update-knowledge": "add documents to a knowledge source, or delete them",
    "verify": "check a knowledge source or a checkpoint",
    "new-generator": "make a small generator without pretraining",
    "make-practice": "make cloze questions from passages",
    "consolidate": "join a question encoder and a generator",
    "finetune": "train question encoder and generator together",
    "eval": "measure answers or retrieval",
    "ask": "ask questions, see answers and passages",
    "make-almanac": "invent documents and questions to try things on",
    "demo": "run the whole job on an invented almanac, in minutes",
}


@dataclass(frozen=True)
class Command:
    """A command, loaded."""

    settings_class: type[Any]
    run: Callable[[Any], Any]
    """From settings to a result."""
    show: Callable[[Any], None]
    """Prints a result."""

    @property
    def purpose(self) -> str:
        """What `run` does, in a sentence or some."""
        return (self.run.__doc__ or "").partition("\n\n")[0]


def load_command(name: str) -> Command:
    """The command called `name`, such as build-knowledge, from its module, which has build_knowledge for it."""
    module_name = name.replace("-", "_")
    module = importlib.import_module(f"ragstone.commands.{module_name}")
    settings_name = "".join(map(str.capitalize, name.split("-"))) + "Settings"
    return Command(getattr(module, settings_name), getattr(module, module_name), module.show)
