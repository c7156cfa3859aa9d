"""Progress bars on a real terminal, and silence without one."""

from __future__ import annotations

import json
import os
import pty
import re
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

DPR_ENTRIES = [
    {
        "question": question,
        "answers": [answer],
        "positive_ctxs": [{"title": title, "text": text}],
        "hard_negative_ctxs": [{"title": "hill", "text": "the hill by the river was red"}],
    }
    for question, answer, title, text in (
        ("what is blue ?", "the river", "river", "the river of the old town is blue"),
        ("who founded the bridge ?", "anna", "bridge", "anna founded the stone bridge"),
        ("who founded the town ?", "otto", "town", "otto founded the old town in the hill"),
    )
]

SCRIPT = """
import time
from ragstone.progress import activity, progress_bar, track

with progress_bar("train", 2) as bar:
    for step in range(2):
        bar.advance()
        bar.note(f"loss {step}")
        for _ in track(range(3), "evaluate"):
            time.sleep(0.15)
        bar.print(f"step {step} done")
        print("result", step)
with activity("search for it"):
    time.sleep(1.2)
"""


def on_a_terminal(command: Sequence[str], folder: Path | None = None) -> tuple[str, str]:
    """What a command, run in `folder`, writes to a pipe, and what it draws on a terminal of 200 columns."""
    reader, terminal = pty.openpty()
    environment = {**os.environ, "TERM": "xterm", "COLUMNS": "200"}
    streams: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": terminal, "text": True}
    process = subprocess.Popen(command, env=environment, cwd=folder, **streams)
    os.close(terminal)
    drawn = b""
    try:
        while piece := os.read(reader, 4096):
            drawn += piece
    except OSError:
        # Linux's way of saying that the other side is closed.
        pass
    os.close(reader)
    out, _ = process.communicate()
    assert process.returncode == 0
    return out, drawn.decode()


def plain(drawn: str) -> str:
    """What is drawn without colours and movements, each frame on lines of its own."""
    return re.sub(r"\x1b\[[?\d;]*[a-zA-Z]", "", drawn.replace("\x1b[2K", "\n")).replace("\r", "")


@pytest.fixture(scope="module")
def shown() -> tuple[str, str]:
    """What the script writes and draws."""
    return on_a_terminal([sys.executable, "-c", SCRIPT])


def test_a_bar_within_another_stands_below_it(shown: tuple[str, str]) -> None:
    _, drawn = shown
    assert "loss 1" in drawn
    assert "step 1 done" in drawn
    frames = drawn.split("\x1b[2K")
    for bar in ("train", "evaluate"):
        lines = [line for frame in map(plain, frames) for line in frame.splitlines() if line.startswith(f"{bar} ")]
        # The time that is left is not known at first; where a bar shows a rate, it is.
        assert any("-:--:--" in line for line in lines)
        assert any(re.search(r"\d/s 0:00:0\d", line) for line in lines)
    below = [frame for frame in frames if "train" in frame and "evaluate" in frame.partition("\n")[2]]
    assert below, "no frame shows both bars, one below the other"
    assert all("evaluate" not in frame or "train" in frame for frame in frames), "the bars overwrite each other"


def test_what_has_no_known_end_shows_since_when_it_lasts_and_goes(shown: tuple[str, str]) -> None:
    _, drawn = shown
    frames = [frame for frame in drawn.split("\x1b[2K") if "search for it" in frame]
    assert "0:00:00" in frames[0]
    assert "0:00:01" in frames[-1]
    assert all("-:--" not in frame for frame in frames)
    # The last thing that is done is to clear the line.
    assert drawn.rstrip("\r").endswith("\x1b[2K")


def test_what_is_printed_to_a_pipe_meanwhile_stays_on_its_way(shown: tuple[str, str]) -> None:
    out, drawn = shown
    assert out == "result 0\nresult 1\n"
    assert "result" not in drawn


def test_silence_without_a_terminal() -> None:
    done = subprocess.run([sys.executable, "-c", SCRIPT], capture_output=True, text=True, check=True)
    assert done.stdout == "result 0\nresult 1\n"
    assert done.stderr == "step 0 done\nstep 1 done\n"


@pytest.fixture(scope="module")
def commands(
    models_folder: Path, documents_file: Path, pairs_folder: Path, tmp_path_factory: pytest.TempPathFactory
) -> str:
    """What the whole job draws, one command after the other in a process."""
    folder = tmp_path_factory.mktemp("job")
    (folder / "dpr.json").write_text(json.dumps(DPR_ENTRIES), encoding="utf-8")
    (folder / "models").symlink_to(models_folder)
    lines = f"""
        new-generator --csv_path {documents_file} --dest new
        consolidate --model_type rag_token --dest rag --generator_name_or_path models/generator
          --question_encoder_name_or_path models/question_encoder
        build-knowledge --csv_path {documents_file} --output_dir knowledge
          --dpr_ctx_encoder_model_name models/passage_encoder
        finetune --data_dir {pairs_folder} --output_dir run --model_name_or_path rag --passages_path knowledge
          --train_batch_size 5 --num_train_epochs 1
        eval --model_name_or_path run/best --evaluation_set {pairs_folder / "test.source"}
          --gold_data_path {pairs_folder / "test.target"} --gold_data_mode ans --predictions_path out/answers.txt
        ask --model_name_or_path run/best --question who?
        parse-dpr --src_path dpr.json --evaluation_set out/dpr.source --gold_data_path out/dpr.pages
        train-retriever --train_path dpr.json --output_dir retriever --max_steps 2
    """
    words = [line.split() for line in lines.replace("\n          ", " ").strip().splitlines()]
    program = f"import sys; from ragstone.__main__ import main; sys.exit(any([main(words) for words in {words}]))"
    _, drawn = on_a_terminal([sys.executable, "-c", program], folder)
    return plain(drawn)


def test_the_first_seconds_are_told_too(commands: str) -> None:
    """Before anything else: importing torch and transformers takes longer than what many commands do."""
    assert commands.lstrip().startswith("Loading libraries")


@pytest.mark.parametrize(
    "said",
    [
        *("Learning a tokenizer", "Loading models/question_encoder", "Loading models/generator"),
        *("Writing the checkpoint", "Trying the checkpoint out", "Searching the index", "Opening the index"),
        *("Saving checkpoint2", "Loading run/best"),
        *(r"Reading \(MB\) .* 0/0", r"Embedding .* 0/6", r"Indexing .* 0/6", r"Measuring the index .* 0/6"),
        # What is known of a step, with rate and time left; what a validation found stays above it.
        r"Training .* 2/2 +[\d.]+/s 0:00:00 loss/token \d.* questions/s  lr \d.*  distinct \d.*  entropy prior",
        r"step 2/2  em \d.*  f1 \d.*  loss/token \d",
        r"Training .* 2/2 +[\d.]+/s 0:00:00 loss \d.*  accuracy",
        *(r"Answering .* 0/1", r"Bootstrap intervals .* 0/\d", r"Reading dpr.json \(MB\) .* 0/0"),
        # A question that is asked has no number of others to go.
        r"Answering +. +0:00:00",
    ],
)
def test_commands_say_what_they_are_at(commands: str, said: str) -> None:
    """What has a total shows how much is done, how fast and what is left; what has none, since when it lasts."""
    assert re.search(f"^{said}", commands, flags=re.MULTILINE)
