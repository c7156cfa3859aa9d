"""metrics.json: a record per validation under "val", the test scores under "test"; names as in the reference."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ragstone.output import write_text
from ragstone.training.loop import Validation

METRICS_NAME = "metrics.json"


class MetricsFile:
    """The file, written anew and whole whenever something is added."""

    def __init__(self, folder: Path) -> None:
        """Go on with what is there."""
        self._path = folder / METRICS_NAME
        self._values: dict[str, Any] = {"val": []}
        if self._path.is_file():
            self._values = json.loads(self._path.read_text(encoding="utf-8"))

    def forget_after(self, step: int) -> None:
        """Leave out test scores, and validations after `step`, which a resumed run does again."""
        self._values = {"val": [record for record in self._values["val"] if record["step_count"] <= step]}

    def add_validation(self, validation: Validation) -> None:
        """Add a record."""
        scores = {f"val_avg_{name}": round(value, 4) for name, value in validation.scores.items()}
        measures = {name: round(value, 6) for name, value in validation.measures.items()}
        self._values["val"].append(
            {
                "step_count": validation.step,
                **scores,
                **measures,
                "learning_rate": validation.learning_rate,
                "val_seconds": round(validation.seconds, 2),
            }
        )
        self._write()

    def set_test(self, scores: Mapping[str, float]) -> None:
        """Set the test scores."""
        self._values["test"] = {f"test_avg_{name}": round(value, 4) for name, value in scores.items()}
        self._write()

    def _write(self) -> None:
        write_text(self._path, json.dumps(self._values, indent=2) + "\n")
