"""scripts/two_hosts.py: two hosts train together, lose each other and go on; nothing is left of them."""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[1] / "scripts" / "two_hosts.py"
COMMAND = [sys.executable, "-W", "error", str(SCRIPT)]
FOLDERS = Path("/tmp")
"""Where the script works, wherever other temporary files go: Ray's sockets need a short path."""
PROBE = f"two-hosts-probe-{os.getpid()}"
pytestmark = pytest.mark.xdist_group("ray")
HEADINGS = [
    "== A knowledge source and a checkpoint",
    "== One process with the whole batch, for comparison",
    "== torchrun on two hosts, half of each batch on each",
    "== The same, with the link cut after the first checkpoint",
    "== A Ray cluster of two hosts: one trains, a worker on each searches",
    "== The same with half of the source for each worker, and the link cut after the first checkpoint",
    "== The whole source for each again, and the link cut after the first checkpoint",
]


def namespaces() -> set[str]:
    listed = subprocess.run(["ip", "netns", "list"], capture_output=True, text=True, check=True)
    return {line.split()[0] for line in listed.stdout.splitlines()}


def processes() -> set[str]:
    """Of torchrun, Ray and Ragstone, as far as they belong to the script's folder."""
    found = set()
    for path in Path("/proc").glob("[0-9]*"):
        try:
            if str((path / "cwd").readlink()).startswith(str(FOLDERS / "two-hosts-")):
                found.add(path.name)
        except OSError:
            continue
    return found


@pytest.fixture
def leaves_nothing() -> Iterator[None]:
    """What is skipped where no hosts can be made, and fails if something of them is still there."""
    if os.geteuid() != 0:
        pytest.skip("making network namespaces needs root")
    if shutil.which("ip") is None:
        pytest.skip("making network namespaces needs the program ip (iproute2)")
    probe = subprocess.run(["ip", "netns", "add", PROBE], capture_output=True, text=True, check=False)
    subprocess.run(["ip", "netns", "delete", PROBE], capture_output=True, check=False)
    if probe.returncode != 0:
        pytest.skip(f"network namespaces cannot be made here: {probe.stderr.strip()}")
    before = (namespaces(), set(FOLDERS.glob("two-hosts-*")), processes())
    yield
    assert (namespaces(), set(FOLDERS.glob("two-hosts-*")), processes()) == before


@pytest.mark.slow
@pytest.mark.xdist_group("hosts")
@pytest.mark.timeout(1500)
def test_they_come_to_the_same_losses_and_survive_a_cut_link(leaves_nothing: None) -> None:
    done = subprocess.run(COMMAND, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    lines = done.stdout.splitlines()
    assert [line for line in lines if line.startswith("== ")] == HEADINGS
    losses = [line for line in lines if line.startswith("losses of ")]
    values = [line.split(": ")[1].split(";")[0].split()[2::3] for line in losses]
    assert len(values) == 6
    assert all(len(row) == 5 for row in values)
    for row in values[1:]:
        assert list(map(float, row)) == pytest.approx(list(map(float, values[0])), rel=1e-4)
    told = [line.split("ragstone finetune: ")[1] for line in lines if " s after the cut: ragstone" in line]
    assert told[0].startswith("Rank 0 waited in vain (time-out 15 s): rank 1 is gone or stopped;")
    assert told[1].startswith("Rank 1 waited in vain (time-out 15 s): rank 0's host 10.77.0.1:29500 cannot be reached;")
    # Either may be the one on the second host.
    assert re.match(r"The retrieval worker for part [12] of 2 does not answer any more \(time-out 30 s\):", told[2])
    assert len(told) == 3
    assert "host 1 runs ray::RetrievalWorker" in lines
    assert "host 2 runs ray::RetrievalWorker" in lines
    assert sum(line.startswith("went on from the checkpoint of step ") for line in lines) == 2
    assert sum(line.endswith("of 2 cannot be reached; others are asked until it is back.") for line in lines) == 1


@pytest.mark.slow
@pytest.mark.xdist_group("hosts")
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_stopped_on_the_way_it_leaves_nothing(leaves_nothing: None, number: signal.Signals) -> None:
    with subprocess.Popen(COMMAND, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        for line in process.stdout:
            if line.startswith("host 1$ ragstone finetune"):
                break
        made = [name for name in namespaces() if name.startswith(f"two-hosts-{process.pid}-")]
        process.send_signal(number)
        _, err = process.communicate(timeout=60)
    assert process.returncode == 130, err
    # Where a command was just being started, Python adds that nobody has closed its pipe.
    assert "two_hosts: interrupted" in err.splitlines()
    assert len(made) == 2


def test_without_ip_it_says_what_it_needs(tmp_path: Path) -> None:
    nowhere = {**os.environ, "PATH": str(tmp_path)}
    done = subprocess.run(COMMAND, capture_output=True, text=True, check=False, env=nowhere)
    assert done.returncode == 2
    assert done.stderr == (
        "two_hosts: Hosts are made as network namespaces, which takes root and the program ip (iproute2).\n"
    )
