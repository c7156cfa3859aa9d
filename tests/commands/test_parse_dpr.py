"""ragstone parse-dpr on the command line."""

from __future__ import annotations

import gzip
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from ragstone.__main__ import main

ENTRIES = [
    {
        "question": "who founded the old town?",
        "answers": ["otto"],
        "positive_ctxs": [
            {"title": "Old Town", "text": "otto founded it", "score": 3.5},
            {"title": "Otto", "text": "a founder"},
            {"title": "Old Town", "text": "more of it"},
        ],
        "negative_ctxs": [{"title": "Hill", "text": "it is red"}],
        "hard_negative_ctxs": [],
    },
    {"question": "what is blue?", "positive_ctxs": [{"title": "River", "text": "blue"}]},
]


class Folder:
    """A folder with DPR data, and the command run in it."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.source, self.questions, self.titles = path / "dpr.json", path / "test.source", path / "test.gold"
        self.write(ENTRIES)

    def write(self, entries: Any) -> None:
        self.source.write_text(json.dumps(entries), encoding="utf-8")

    def run(self, *flags: str) -> int:
        paths = {"--src_path": self.source, "--evaluation_set": self.questions, "--gold_data_path": self.titles}
        return main(["parse-dpr", *[str(word) for pair in paths.items() for word in pair], *flags])

    def names(self) -> list[str]:
        return sorted(path.name for path in self.path.iterdir())


@pytest.fixture
def folder(tmp_path: Path) -> Folder:
    return Folder(tmp_path)


def error_of(capsys: pytest.CaptureFixture[str]) -> str:
    """The one sentence on standard error."""
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith("ragstone parse-dpr: ")
    assert captured.err.count("\n") == 1
    return captured.err


def test_questions_and_titles(folder: Folder, capsys: pytest.CaptureFixture[str]) -> None:
    assert folder.run() == 0
    assert folder.questions.read_text(encoding="utf-8") == "who founded the old town?\nwhat is blue?\n"
    assert folder.titles.read_text(encoding="utf-8") == "Old Town\tOtto\tOld Town\nRiver\n"
    assert folder.names() == ["dpr.json", "test.gold", "test.source", "test.source.settings.yaml"]
    out, err = capsys.readouterr()
    assert [line.split()[:2] for line in out.splitlines()] == [["questions", "2"], ["titles", "4"], ["skipped", "0"]]
    assert err == "", "a progress bar where there is no terminal"
    folder.titles.rename(folder.path / "first.gold")
    again = ["--config", str(folder.path / "test.source.settings.yaml"), "--evaluation_set", str(folder.path / "again")]
    assert main(["parse-dpr", *again]) == 0
    assert folder.titles.read_bytes() == (folder.path / "first.gold").read_bytes()


def layout_of_dpr(number: int) -> dict[str, Any]:
    """An entry with all the keys of DPR's biencoder files, in their order."""

    def context(name: str, score: float) -> dict[str, Any]:
        text = f'{name} "{name}" is one of the towns of the county.'
        return {"title": name, "text": text, "score": score, "title_score": 0, "passage_id": str(10_000 + number)}

    return {
        "dataset": "nq_dev_psgs_w100",
        "question": f"where is town number {number}",
        "answers": [f"Town {number}", "the county"],
        "positive_ctxs": [{**context(f"Town {number}", 1000), "title_score": 1}, context("Old County", 13.394315)],
        "negative_ctxs": [context(f"Bridge {i}", 0) for i in range(50)],
        "hard_negative_ctxs": [context(f"River {i}", 17.5 - i / 8) for i in range(30)],
    }


def test_the_layout_of_dprs_own_files(folder: Folder) -> None:
    folder.write([layout_of_dpr(number) for number in range(3)])
    assert folder.run() == 0
    assert folder.questions.read_text(encoding="utf-8") == "".join(f"where is town number {i}\n" for i in range(3))
    assert folder.titles.read_text(encoding="utf-8") == "".join(f"Town {i}\tOld County\n" for i in range(3))


def test_gzipped(folder: Folder) -> None:
    folder.source.write_bytes(gzip.compress(folder.source.read_bytes()))
    assert folder.run() == 0
    assert folder.titles.read_text(encoding="utf-8") == "Old Town\tOtto\tOld Town\nRiver\n"


def test_line_breaks_and_tabs_stay_within_line_and_column(folder: Folder) -> None:
    breaks = ["\n", "\r\n", "\t", "\u2028", "\x85", " \n\n "]
    titles = [{"title": f"Old{space}Town", "text": "t"} for space in breaks]
    folder.write([{"question": f"\nwho{space}is  it?\r\n", "positive_ctxs": titles} for space in breaks])
    assert folder.run() == 0
    assert folder.questions.read_text(encoding="utf-8").splitlines() == ["who is  it?"] * len(breaks)
    assert folder.titles.read_text(encoding="utf-8").splitlines() == ["\t".join(["Old Town"] * len(breaks))] * len(
        breaks
    )


def test_what_it_writes_is_what_an_evaluation_reads(folder: Folder) -> None:
    from ragstone.data.gold import read_gold_titles, read_questions

    assert folder.run() == 0
    questions = read_questions(folder.questions)
    assert questions == [entry["question"] for entry in ENTRIES]
    assert read_gold_titles(folder.titles, questions) == [("Old Town", "Otto", "Old Town"), ("River",)]


@pytest.mark.parametrize("contexts", [[], None, [{"title": " ", "text": "t"}], [{"title": None, "text": "t"}]])
def test_no_titled_positive_context(folder: Folder, contexts: Any, capsys: pytest.CaptureFixture[str]) -> None:
    folder.write([ENTRIES[0], {"question": "which is it?", "positive_ctxs": contexts}, ENTRIES[1]])
    assert folder.run() == 2
    error = error_of(capsys)
    assert f"{folder.source}, entry 2 ('which is it?') has no positive context with a title" in error
    assert "--skip_without_positive" in error
    assert folder.names() == ["dpr.json"]
    assert folder.run("--skip_without_positive") == 0
    assert folder.questions.read_text(encoding="utf-8") == "who founded the old town?\nwhat is blue?\n"
    assert folder.titles.read_text(encoding="utf-8").count("\n") == 2
    assert "skipped    1" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"[]", "has no entry with a titled positive context"),
        (b"who? what?", "does not begin with '['"),
        (json.dumps(ENTRIES).encode()[:-30], "the file ends inside entry 2"),
        (json.dumps(ENTRIES).encode().replace(b"blue", b"bl\xfce", 1), "byte 0xfc is not UTF-8"),
        (gzip.compress(json.dumps(ENTRIES).encode() * 9, mtime=0)[:-20], "damaged or cut off gzip file"),
    ],
)
def test_unusable_data_leaves_existing_files_alone(
    folder: Folder, content: bytes, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    folder.source.write_bytes(content)
    folder.questions.write_text("kept\n", encoding="utf-8")
    assert folder.run() == 2
    assert message in error_of(capsys)
    assert folder.names() == ["dpr.json", "test.source"]
    assert folder.questions.read_text(encoding="utf-8") == "kept\n"


def test_existing_files_are_replaced_whole(folder: Folder) -> None:
    for path in (folder.questions, folder.titles):
        path.write_text("of a longer file before\n" * 100, encoding="utf-8")
    assert folder.run() == 0
    assert folder.questions.read_text(encoding="utf-8").count("\n") == 2
    assert folder.titles.read_text(encoding="utf-8").count("\n") == 2


def test_missing_source(folder: Folder, capsys: pytest.CaptureFixture[str]) -> None:
    folder.source.unlink()
    assert folder.run() == 2
    assert f"{folder.source} cannot be read: No such file" in error_of(capsys)
    assert folder.names() == []


def test_files_that_overwrite_each_other(folder: Folder, capsys: pytest.CaptureFixture[str]) -> None:
    before = folder.source.read_bytes()
    assert folder.run("--gold_data_path", str(folder.path / "." / "dpr.json")) == 2
    assert "these must be three different files" in error_of(capsys)
    assert folder.source.read_bytes() == before


def test_outputs_that_cannot_be_files(folder: Folder, capsys: pytest.CaptureFixture[str]) -> None:
    (folder.path / "taken").mkdir()
    assert folder.run("--gold_data_path", str(folder.path / "taken")) == 2
    assert "taken, which is not a file" in error_of(capsys)
    assert folder.run("--gold_data_path", str(folder.path / "nowhere" / "gold")) == 2
    assert "there is no folder" in error_of(capsys)
    assert folder.names() == ["dpr.json", "taken"]


MEASURE = """
import json, re, sys
from pathlib import Path
from ragstone.__main__ import main

small, large, folder = sys.argv[1:]
peaks = []
for path in (small, large):
    code = main(["parse-dpr", "--src_path", path, "--evaluation_set", f"{folder}/q", "--gold_data_path", f"{folder}/g"])
    # Not resource.getrusage: its peak begins with that of the process that started this one.
    peaks.append(1024 * int(re.search(r"VmHWM:\\s*(\\d+) kB", Path("/proc/self/status").read_text())[1]))
    assert code == 0
print(json.dumps(peaks))
"""


@pytest.mark.parametrize("zipped", [False, True])
def test_memory_does_not_grow_with_the_file(tmp_path: Path, zipped: bool) -> None:
    """A process that has parsed ten entries grows by less than a tenth of the file when it parses tens of megabytes."""
    context = {"title": "Old Town", "text": "otto founded the old town in the hill " * 80}
    line = json.dumps({**ENTRIES[0], "negative_ctxs": [context] * 10})
    paths = [tmp_path / "small.json", tmp_path / "large.json"]
    for path, count in zip(paths, (10, 1300), strict=True):
        content = f"[{', '.join([line] * count)}]".encode()
        path.write_bytes(gzip.compress(content, 1) if zipped else content)
    size = len(content)
    assert size > 40e6
    command = [sys.executable, "-c", MEASURE, *map(str, paths), str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    before, after = json.loads(done.stdout.splitlines()[-1])
    assert after - before < size / 10
    assert (tmp_path / "q").read_text(encoding="utf-8").count("\n") == 1300
