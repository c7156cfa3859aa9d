"""docs/decoder-only.md: its commands, run as they stand, do what the page says."""

from __future__ import annotations

import json
import re
import shlex
from pathlib import Path

import pytest
from safetensors.torch import load_file

from ragstone.__main__ import main
from ragstone.encoders.precision import best_device, fast_bfloat16

PAGE = Path(__file__).parents[1] / "docs" / "decoder-only.md"


def exact_match(path: Path) -> float:
    record = json.loads(path.with_suffix(".predictions.metrics.json").read_text(encoding="utf-8"))
    return record["scores"]["em"]["value"]


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_the_commands(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    weights = None
    for line in re.findall(r"^    ragstone (.*)$", PAGE.read_text(encoding="utf-8"), re.MULTILINE):
        words = shlex.split(line)
        if not fast_bfloat16(best_device()) and "--bf16" in words:
            words.remove("--bf16")
        if "--lora_r" in words:
            weights = load_file("run/best/model.safetensors")
        assert main(words) == 0, line
    assert exact_match(tmp_path / "test") >= 80
    assert exact_match(tmp_path / "after") >= exact_match(tmp_path / "before") + 30
    assert (tmp_path / "merged.predictions").read_text() == (tmp_path / "after.predictions").read_text()
    after = load_file("run/best/model.safetensors")
    assert weights is not None and all((tensor == after[name]).all() for name, tensor in weights.items())
    assert not any(name.startswith("rag.generator.") for name in load_file("adapted/best/model.safetensors"))
