"""A hub that is not there, and one that is: both on this machine."""

from __future__ import annotations

import http.server
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from ragstone.encoders.hub import hub_options

ASK = """
import sys
from ragstone.encoders.hub import hub_options
print(hub_options(sys.argv[1]))
"""


def online(endpoint: str) -> dict[str, str]:
    """Variables of a process that may ask the hub at `endpoint`."""
    kept = {name: value for name, value in os.environ.items() if name != "HF_HUB_OFFLINE"}
    return {**kept, "HF_ENDPOINT": endpoint, "NO_PROXY": "127.0.0.1"}


def test_a_model_of_a_hub_that_does_not_answer_is_refused_at_once() -> None:
    """In one sentence: nothing is said of further tries, which would take half a minute."""
    command = [sys.executable, "-m", "ragstone", "ask", "--model_name_or_path=some/model", "--question=what ?"]
    environment = online("http://127.0.0.1:9")
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert done.stderr == (
        "ragstone ask: 'some/model' is neither a folder nor a model that can be reached on the hub; check the "
        "spelling, or download the model and give its folder.\n"
    )


class Hub(http.server.BaseHTTPRequestHandler):
    """Answers, though it has nothing."""

    def do_HEAD(self) -> None:
        self.send_response(404)
        self.end_headers()

    def log_message(self, *_: object) -> None:
        """Nothing."""


@pytest.fixture
def hub() -> Iterator[str]:
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Hub) as server:
        threading.Thread(target=server.serve_forever).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


def test_a_hub_that_answers_is_asked_for_models(hub: str, tmp_path: Path) -> None:
    command = [sys.executable, "-c", ASK]
    for name, expected in (("some/model", "{}\n"), (str(tmp_path), "{}\n")):
        done = subprocess.run([*command, name], env=online(hub), capture_output=True, text=True, check=True)
        assert done.stdout == expected


def test_offline_only_earlier_downloads_are_looked_at(tmp_path: Path) -> None:
    """As all tests run."""
    assert hub_options("some/model") == {"local_files_only": True}
    assert hub_options(str(tmp_path)) == {}
