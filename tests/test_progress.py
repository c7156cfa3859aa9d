"""Progress bars on a real terminal, and silence without one."""

from __future__ import annotations

import os
import pty
import subprocess
import sys

SCRIPT = """
import time
from ragstone.progress import progress_bar, track

with progress_bar("train", 2) as bar:
    for step in range(2):
        bar.advance()
        bar.note(f"loss {step}")
        for _ in track(range(3), "evaluate"):
            time.sleep(0.15)
        bar.print(f"step {step} done")
"""


def on_a_terminal() -> str:
    """What the script draws on a terminal of 100 columns."""
    reader, terminal = pty.openpty()
    environment = {**os.environ, "TERM": "xterm", "COLUMNS": "100"}
    process = subprocess.Popen([sys.executable, "-c", SCRIPT], stderr=terminal, env=environment)
    os.close(terminal)
    drawn = b""
    try:
        while piece := os.read(reader, 4096):
            drawn += piece
    except OSError:
        # Linux's way of saying that the other side is closed.
        pass
    os.close(reader)
    assert process.wait() == 0
    return drawn.decode()


def test_a_bar_within_another_stands_below_it() -> None:
    drawn = on_a_terminal()
    assert "loss 1" in drawn
    assert "/s" in drawn
    # The rate, and the time that is left.
    assert "0:00:00" in drawn
    assert "step 1 done" in drawn
    frames = drawn.split("\x1b[2K")
    below = [frame for frame in frames if "train" in frame and "evaluate" in frame.partition("\n")[2]]
    assert below, "no frame shows both bars, one below the other"
    assert all("evaluate" not in frame or "train" in frame for frame in frames), "the bars overwrite each other"


def test_silence_without_a_terminal() -> None:
    done = subprocess.run([sys.executable, "-c", SCRIPT], capture_output=True, text=True, check=True)
    assert done.stdout == ""
    assert done.stderr == "step 0 done\nstep 1 done\n"
