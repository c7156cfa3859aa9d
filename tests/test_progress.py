"""Progress bars on a real terminal, and silence without one."""

from __future__ import annotations

import os
import pty
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest

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


def on_a_terminal(command: Sequence[str]) -> tuple[str, str]:
    """What a command writes to a pipe, and what it draws on a terminal of 100 columns."""
    reader, terminal = pty.openpty()
    environment = {**os.environ, "TERM": "xterm", "COLUMNS": "100"}
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=terminal, env=environment, text=True)
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


@pytest.fixture(scope="module")
def shown() -> tuple[str, str]:
    """What the script writes and draws."""
    return on_a_terminal([sys.executable, "-c", SCRIPT])


def test_a_bar_within_another_stands_below_it(shown: tuple[str, str]) -> None:
    _, drawn = shown
    assert "loss 1" in drawn
    assert "/s" in drawn
    # The rate, and the time that is left.
    assert "0:00:00" in drawn
    assert "step 1 done" in drawn
    frames = drawn.split("\x1b[2K")
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


def test_commands_say_what_they_are_at(models_folder: Path, documents_file: Path, tmp_path: Path) -> None:
    """What cannot say when it ends, and what has a time left: reading documents counts their megabytes."""
    encoder, generator = (str(models_folder / name) for name in ("question_encoder", "generator"))
    new = ["new-generator", f"--csv_path={documents_file}", f"--dest={tmp_path / 'new'}"]
    join = ["consolidate", "--model_type=rag_token", f"--dest={tmp_path / 'rag'}"]
    join += [f"--generator_name_or_path={generator}", f"--question_encoder_name_or_path={encoder}"]
    program = f"import sys; from ragstone.__main__ import main; sys.exit(main({new}) or main({join}))"
    _, drawn = on_a_terminal([sys.executable, "-c", program])
    for activity in (
        *("Learning a tokenizer", "Reading (MB)", f"Loading {encoder}", f"Loading {generator}"),
        *("Writing the checkpoint", "Trying the checkpoint out"),
    ):
        assert activity in "".join(drawn.split("\r\n")), activity
