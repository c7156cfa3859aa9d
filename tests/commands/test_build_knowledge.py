from __future__ import annotations

import itertools
import json
import os
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import faiss
import numpy as np
import pytest
import torch
import yaml

from ragstone.__main__ import main
from ragstone.commands.build_knowledge import BuildKnowledgeSettings, _parts_folder
from ragstone.encoders import load
from ragstone.encoders.load import load_encoder
from ragstone.encoders.text_encoder import TextEncoder
from ragstone.knowledge import build
from ragstone.knowledge.source import INDEX_NAME, PASSAGES_NAME, KnowledgeSource
from tests.commands.conftest import layers_called
from tests.conftest import WORDS
from tests.processes.test_ray_cluster import started_head


@pytest.fixture
def flags(models_folder: Path, documents_file: Path, tmp_path: Path) -> list[str]:
    """A build into tmp_path/source."""
    return [
        "build-knowledge",
        *("--csv_path", str(documents_file)),
        *("--output_dir", str(tmp_path / "source")),
        *("--dpr_ctx_encoder_model_name", str(models_folder / "passage_encoder")),
    ]


def refused(capsys: pytest.CaptureFixture[str], arguments: list[str]) -> str:
    """The one sentence with which the command line refuses `arguments`."""
    assert main(arguments) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.count("\n") == 1
    assert err.startswith("ragstone build-knowledge: ")
    return err


def test_all_flags(flags: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    threads = torch.get_num_threads()
    extra = "--num_proc 1 --batch_size 2 --d 16 --m 16 --index hnsw --max_words 4 --precision fp32 --no_normalize"
    assert main([*flags, *extra.split()]) == 0
    source = KnowledgeSource(tmp_path / "source")
    assert source.manifest is not None
    assert (source.manifest.index, source.manifest.documents, len(source)) == ("HNSW16,Flat", 6, 12)
    assert [p.text for p in source.store.passages([0, 1])] == ["the river of the", "old town is blue"]
    assert torch.get_num_threads() == threads
    saved = yaml.safe_load((tmp_path / "source" / "settings.yaml").read_text(encoding="utf-8"))
    assert (saved["num_proc"], saved["batch_size"], saved["d"], saved["m"], saved["normalize"]) == (1, 2, 16, 16, False)
    assert set(saved) >= {"csv_path", "output_dir", "dpr_ctx_encoder_model_name", "rag_model_name", "question", "index"}
    assert sorted(path.name for path in (tmp_path / "source").iterdir()) == sorted(
        [PASSAGES_NAME, INDEX_NAME, "knowledge.json", "settings.yaml"]
    )
    assert [path.name for path in tmp_path.iterdir()] == ["source"]


def test_the_report_is_printed_and_saved(flags: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(flags) == 0
    out = capsys.readouterr().out
    statistics = json.loads((tmp_path / "source" / "knowledge.json").read_text(encoding="utf-8"))["statistics"]
    report = {line[:18].strip(): line[18:].strip() for line in out.splitlines()}
    assert report["knowledge source"] == str(tmp_path / "source")
    assert report["documents"] == "6"
    assert report["passages"] == "6 of at most 100 words"
    assert report["vectors"].startswith("16 dimensions")
    assert report["index"] == "Flat, inner product"
    assert report["size"] == f"{statistics['bytes'] / 2**20:,.1f} MiB"
    assert report["time"].startswith(f"{statistics['seconds']:,.1f} s")
    assert report["recall@5, @20"].startswith(f"{statistics['recall@5']:.3f}, {statistics['recall@20']:.3f}")
    assert report["search"] == f"{statistics['queries_per_second']:,.0f} queries per second"


def test_dashes_and_a_settings_file_give_the_same(flags: list[str], tmp_path: Path) -> None:
    assert main([*flags, "--index", "flat", "--max_words", "3", "--precision", "fp32"]) == 0
    again = ["build-knowledge", "--config", str(tmp_path / "source" / "settings.yaml")]
    assert main([*again, "--output-dir", str(tmp_path / "second")]) == 0
    dashed = [flag.replace("_", "-") if flag.startswith("--") else flag for flag in flags]
    dashed[dashed.index(str(tmp_path / "source"))] = str(tmp_path / "third")
    assert main([*dashed, "--index=flat", "--max-words=3", "--precision=fp32"]) == 0
    first, *others = (KnowledgeSource(tmp_path / name) for name in ("source", "second", "third"))
    for other in others:
        rows = np.arange(len(first))
        np.testing.assert_array_equal(first.store.vectors(rows), other.store.vectors(rows))
        assert first.store.passages(rows) == other.store.passages(rows)


def test_ivf_by_its_factory_string_and_several_documents(
    flags: list[str], documents_file: Path, tmp_path: Path
) -> None:
    (tmp_path / "more.jsonl").write_text('{"title": "king", "text": "the old king"}\n', encoding="utf-8")
    arguments = [*flags, "--index", "IVF2,Flat", "--csv_path", str(documents_file), str(tmp_path / "*.jsonl")]
    assert main(arguments) == 0
    source = KnowledgeSource(tmp_path / "source")
    assert source.manifest is not None
    assert (source.manifest.index, len(source)) == ("IVF2,Flat", 7)
    assert source.manifest.statistics["recall@5"] == 1


def test_num_proc_is_the_threads_that_work(flags: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Seen where the vectors are made and where the index is built; what they make is the same."""
    seen: list[tuple[str, int, int]] = []
    sizes: list[int] = []

    def watch(name: str) -> None:
        original = getattr(build, name)

        def watched(*arguments: Any, **options: Any) -> Any:
            seen.append((name, torch.get_num_threads(), faiss.omp_get_max_threads()))
            sizes.extend(value for option, value in options.items() if option == "batch_size")
            return original(*arguments, **options)

        monkeypatch.setattr(build, name, watched)

    watch("embed_groups")
    watch("build_index")
    for number in (1, 3):
        extra = [
            "--num_proc",
            str(number),
            "--batch_size",
            str(number + 1),
            "--output_dir",
            str(tmp_path / f"by-{number}"),
        ]
        assert main([*flags, "--index", "flat", "--precision", "fp32", *extra]) == 0
    assert seen == [(name, number, number) for number in (1, 3) for name in ("embed_groups", "build_index")]
    assert sizes == [2, 4]
    one, three = (KnowledgeSource(tmp_path / name) for name in ("by-1", "by-3"))
    rows = np.arange(len(one))
    assert one.store.passages(rows) == three.store.passages(rows)
    np.testing.assert_allclose(one.store.vectors(rows), three.store.vectors(rows), rtol=1e-5, atol=1e-6)


def test_vectors_are_made_in_half_precision_where_the_processor_has_it(
    flags: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    vectors = []
    for has_it in (False, True):
        monkeypatch.setattr("ragstone.encoders.precision.fast_bfloat16", lambda _, answer=has_it: answer)
        folder = tmp_path / str(has_it)
        assert main([*flags, "--index", "flat", "--output_dir", str(folder)]) == 0
        found = KnowledgeSource(folder).store.vectors(np.arange(6))
        vectors.append(found / np.linalg.norm(found, axis=1, keepdims=True))
    assert not np.array_equal(*vectors)
    assert (np.sum(vectors[0] * vectors[1], axis=1) > 0.999).all()


def test_ivfpq(flags: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A compressed index, whose recall is reported as it is: below that of exact search."""
    texts = {" ".join(words) for words in itertools.product(WORDS[:10], WORDS[5:15], WORDS[10:20])}
    documents = tmp_path / "many.tsv"
    documents.write_text("".join(f"hill\t{text}\n" for text in sorted(texts)), encoding="utf-8")
    assert main([*flags, "--index", "ivfpq", "--csv_path", str(documents), "--batch_size", "256"]) == 0
    source = KnowledgeSource(tmp_path / "source")
    assert source.manifest is not None
    assert (source.manifest.index, len(source)) == ("IVF25,PQ2x8", 1000)
    assert 0.1 < source.manifest.statistics["recall@20"] < 1
    assert "index             IVF25,PQ2x8, inner product" in capsys.readouterr().out
    # A file that holds vectors whole would be as large as the vectors.
    assert (tmp_path / "source" / INDEX_NAME).stat().st_size < 1000 * 16 * 4


@pytest.mark.parametrize("half", [["--torch_dtype", "bfloat16"], ["--quantization", "8bit"]], ids=" ".join)
def test_it_answers_a_question_at_the_end_as_ask_does(
    flags: list[str], half: list[str], tmp_path: Path, checkpoint_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    question = ["--question", "who founded the town ?"]
    # Where the processor has bfloat16, passages would be embedded in it.
    embedding = ["--precision", "fp32"]
    with layers_called() as called:
        assert main([*flags, *embedding, *question, "--rag_model_name", str(checkpoint_folder), *half]) == 0
    assert ("Linear8bitLt" in called.classes) == ("8bit" in half)
    assert (torch.bfloat16 in called.types) == ("bfloat16" in half)
    out = capsys.readouterr().out.splitlines()
    assert out[0].startswith("knowledge source")
    where = ["--model_name_or_path", str(checkpoint_folder), "--passages_path", str(tmp_path / "source")]
    assert main(["ask", *where, *question, *half, "--json"]) == 0
    answer = json.loads(capsys.readouterr().out)["answer"]
    assert answer
    assert out[-1] == f"answer            {answer}"


@pytest.mark.parametrize(
    ("extra", "message"),
    [
        (["--csv_path", "nowhere.tsv"], "There is no file nowhere.tsv"),
        (["--d", "17"], "--d is 17, but the encoder"),
        (["--m", "0"], "--m is 0, but must be at least 1"),
        (["--num_proc", "0"], "--num_proc is 0"),
        (["--max_words", "-1"], "--max_words is -1"),
        (["--batch_size", "x"], "--batch_size is 'x', but must be a whole number"),
        (["--question", "who ?"], "--question needs --rag_model_name"),
        (["--torch_dtype", "float16"], "--torch_dtype is for the generator of --rag_model_name"),
        (["--index", "ivfpq"], "there are only 6 passages; use --index flat"),
        (["--precision", "fp8"], "--precision is 'fp8', but must be one of auto, fp32, bf16, fp16"),
        (["--precision", "fp16"], "fp16 needs a GPU"),
        (["--dpr_ctx_encoder_model_name", "nobody/nothing"], "'nobody/nothing' is neither a folder nor a model"),
        (["--unknown", "1"], "There is no flag --unknown"),
        (["--ray_address", "127.0.0.1:1"], "--ray_address names a cluster, which only --ray embeds on"),
        (["--ray", "--ray_address", "127.0.0.1:1"], "No Ray cluster answers at 127.0.0.1:1 (Connection refused)"),
    ],
)
def test_what_cannot_be_used_is_refused(
    flags: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str], extra: list[str], message: str
) -> None:
    assert message in refused(capsys, [*flags, *extra])
    assert not any(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("extra", "message"),
    [
        (["--index", "hnsw", "--m", "1"], "--m is 1, but must be at least 2 for an hnsw index"),
        (["--index", "nonsense"], "--index 'nonsense' is not a FAISS factory string; take auto, flat, hnsw, ivfpq"),
        (["--index", "IVF2,Flatt"], "--index 'IVF2,Flatt' is not a FAISS factory string; take"),
        (["--rag_model_name", "nowhere"], "'nowhere' is neither a folder nor a model"),
        (["--rag_model_name", "{generator}"], "is a bart model, which looks nothing up; give a RAG checkpoint"),
    ],
)
def test_what_needs_no_model_to_be_refused_is_refused_before_one_is_loaded(
    flags: list[str],
    models_folder: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    extra: list[str],
    message: str,
) -> None:
    monkeypatch.setattr(load, "load_encoder", lambda *_, **__: pytest.fail("the encoder was loaded"))
    words = [word.format(generator=models_folder / "generator") for word in extra]
    assert message in refused(capsys, [*flags, *words])
    assert not any(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("index", "message"),
    [
        ("PQ5", "--index 'PQ5' is not a FAISS factory string for 16 dimensions"),
        ("IVF7,Flat", "The index IVF7,Flat cannot be built over 6 vectors"),
        ("IVF2,PQ4x3", "The index IVF2,PQ4x3 cannot be built over 6 vectors"),
        ("IVF2_HNSW1,Flat", "--index 'IVF2_HNSW1,Flat' has a graph of fewer than 2 links"),
        ("IDMap,Flat", "--index 'IDMap,Flat' gives vectors other numbers"),
    ],
)
def test_an_index_that_cannot_be_built_is_refused_before_anything_is_embedded(
    flags: list[str],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    index: str,
    message: str,
) -> None:
    monkeypatch.setattr(TextEncoder, "embed_tokens", lambda *_, **__: pytest.fail("passages were embedded"))
    assert message in refused(capsys, [*flags, "--index", index])
    assert not any(tmp_path.iterdir())


def test_a_question_that_cannot_be_answered_loses_nothing_of_what_was_built(
    flags: list[str], tmp_path: Path, checkpoint_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(checkpoint_folder, tmp_path / "rag")
    (tmp_path / "rag" / "model.safetensors").write_bytes(b"cut")
    assert main([*flags, "--question", "who ?", "--rag_model_name", str(tmp_path / "rag")]) == 2
    out, err = capsys.readouterr()
    assert "passages          6 of at most 100 words" in out
    assert "answer" not in out
    assert err.startswith(f"ragstone build-knowledge: The weights in {tmp_path / 'rag'} cannot be read (")
    assert err.count("\n") == 1
    assert len(KnowledgeSource(tmp_path / "source")) == 6


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"one column only\n", "line 1: 1 column(s) instead of 2"),
        (b'a\tb\nc\t"d" e\n', "line 2: a stray quote"),
        (b"a\t\xff\n", "line 1: byte 2 is not UTF-8 (0xff)"),
        (b"", "There is no text in"),
        (b"title\t\n", "There is no text in"),
    ],
)
def test_bad_documents_leave_nothing(
    flags: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str], content: bytes, message: str
) -> None:
    (tmp_path / "bad.tsv").write_bytes(content)
    assert message in refused(capsys, [*flags, "--csv_path", str(tmp_path / "bad.tsv")])
    assert [path.name for path in tmp_path.iterdir()] == ["bad.tsv"]


def test_an_output_folder_in_use_stays_as_it_is(
    flags: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "source").mkdir()
    (tmp_path / "source" / "work").write_text("mine", encoding="utf-8")
    assert f"The output folder {tmp_path / 'source'} is not empty" in refused(capsys, flags)
    assert [path.name for path in tmp_path.rglob("*")] == ["source", "work"]


def test_an_output_folder_that_cannot_be_made(
    flags: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").write_text("", encoding="utf-8")
    assert "cannot be made" in refused(capsys, [*flags, "--output_dir", str(tmp_path / "file" / "source")])


def test_ctrl_c_leaves_nothing(
    flags: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(TextEncoder, "embed_tokens", interrupted)
    assert main([*flags, "--output_dir", str(tmp_path / "new" / "source")]) == 130
    assert capsys.readouterr().err == "ragstone build-knowledge: interrupted\n"
    assert not any(tmp_path.iterdir())


def test_a_stopped_process_leaves_nothing(flags: list[str], tmp_path: Path) -> None:
    documents = tmp_path / "long.tsv"
    documents.write_text("river\tthe old stone bridge of the town\n" * 200_000, encoding="utf-8")
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "ragstone", *flags, "--csv_path", str(documents)]
    with subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True) as process:
        # While the first rows are made, Arrow loads pandas, parts of which swallow an interruption.
        while process.poll() is None and not any(
            path.stat().st_size > 10_000 for path in tmp_path.glob(".source-*/new/*/*.arrow")
        ):
            time.sleep(0.05)
        process.send_signal(signal.SIGTERM)
        _, err = process.communicate(timeout=60)
    assert (process.returncode, err) == (130, "ragstone build-knowledge: interrupted\n")
    assert [path.name for path in tmp_path.iterdir()] == ["long.tsv"]


def test_without_ray_installed_nothing_is_begun(
    flags: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    err = refused(capsys, [*flags, "--ray", "--csv_path", "nowhere.tsv"])
    assert err == "ragstone build-knowledge: --ray needs Ray: pip install 'ragstone[ray]'.\n"
    assert not any(tmp_path.iterdir())


def test_the_help_tells_of_ray_without_loading_it() -> None:
    program = "import sys; from ragstone.__main__ import main; main(sys.argv[1:]); print(*sorted(sys.modules))"
    command = [sys.executable, "-c", program, "build-knowledge", "--help"]
    out = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    assert "--ray_address" in out
    assert not {"ray", "torch"} & set(out.splitlines()[-1].split())


@pytest.mark.slow
@pytest.mark.xdist_group("ray")
def test_a_build_on_a_cluster_that_is_stopped_goes_on(flags: list[str], models_folder: Path, tmp_path: Path) -> None:
    """Stopped after the first of four parts, then started again."""
    documents = tmp_path / "long.tsv"
    texts = [f"{WORDS[i % 20]} {WORDS[i % 23]} {WORDS[i % 19]}" for i in range(8_200)]
    documents.write_text("".join(f"river\t{text}\n" for text in texts), encoding="utf-8")
    # "local" is a cluster of its own, whatever else runs on the machine.
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1", "RAY_ADDRESS": "local"}
    extra = ["--csv_path", str(documents), "--ray", "--num_proc", "1", "--index", "flat", "--precision", "fp32"]
    command = [sys.executable, "-m", "ragstone", *flags, *extra]
    parts = tmp_path / "source.parts"
    with subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True) as process:
        while process.poll() is None and not list(parts.glob("embedded-*")):
            time.sleep(0.02)
        process.send_signal(signal.SIGTERM)
        _, err = process.communicate(timeout=120)
    assert process.returncode == 130
    finished = sorted(parts.glob("embedded-*"))
    assert 1 <= len(finished) < 4
    started, kept, interrupted = err.splitlines()
    assert started.startswith("No Ray cluster is running here; a local one was started (")
    assert kept == f"{parts} keeps {len(finished)} finished part(s); the same command goes on with them."
    assert interrupted == "ragstone build-knowledge: interrupted"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["long.tsv", "source.parts"]

    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stderr.splitlines()[1:] == [f"{parts} has {len(finished)} of 4 parts from an earlier start."]
    assert "passages          8,200 of at most 100 words" in done.stdout
    assert sorted(path.name for path in tmp_path.iterdir()) == ["long.tsv", "source"]
    source = KnowledgeSource(tmp_path / "source")
    rows = np.arange(0, 8_200, 499)
    assert [passage.text for passage in source.store.passages(rows)] == [texts[row] for row in rows]
    encoder = load_encoder(str(models_folder / "passage_encoder"), "passage")
    expected = encoder.embed([texts[row] for row in rows], ["river"] * len(rows))
    np.testing.assert_allclose(source.store.vectors(rows), expected, rtol=1e-5, atol=1e-5)
    assert main(["verify", str(tmp_path / "source")]) == 0


INDEX_WHEN_TOLD = """
import sys
from ragstone.__main__ import main
from ragstone.knowledge import build
from ragstone.processes import ray_head

ray_head.PATIENCE = 1.0
complete = build.complete_source


def complete_when_told(*arguments, **options):
    print("embedded", flush=True)
    sys.stdin.readline()
    return complete(*arguments, **options)


build.complete_source = complete_when_told
sys.exit(main(sys.argv[1:]))
"""


@pytest.mark.slow
@pytest.mark.xdist_group("ray")
def test_a_cluster_that_is_lost_when_all_is_embedded_is_not_missed(flags: list[str], tmp_path: Path) -> None:
    """The index is built without it."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    folder = tempfile.mkdtemp(prefix="ray-", dir="/tmp")
    environment = {**kept, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1", "RAY_TMPDIR": folder}
    with started_head(environment) as (address, head):
        extra = ["--ray", "--ray_address", address, "--num_proc", "1", "--index", "hnsw", "--precision", "fp32"]
        command = [sys.executable, "-c", INDEX_WHEN_TOLD, *flags, *extra]
        pipes: dict[str, Any] = dict.fromkeys(("stdin", "stdout", "stderr"), subprocess.PIPE)
        with subprocess.Popen(command, env=environment, text=True, **pipes) as process:
            assert process.stdout is not None
            first = process.stdout.readline()
            head.send_signal(signal.SIGTERM)
            head.wait(timeout=60)
            # As long as a process that works on the cluster lives without its head, and twice that.
            time.sleep(3)
            _, err = process.communicate("go on\n", timeout=120)
    assert (first, process.returncode) == ("embedded\n", 0), err
    assert main(["verify", str(tmp_path / "source")]) == 0
    assert [path.name for path in tmp_path.iterdir()] == ["source"]
    shutil.rmtree(folder, ignore_errors=True)


def test_parts_lie_where_other_hosts_find_the_output(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Another host may have a disk where this one has a symbolic link."""
    (tmp_path / "disk").mkdir()
    (tmp_path / "shared").symlink_to("disk")
    monkeypatch.chdir(tmp_path)
    for output in (Path("shared/source"), tmp_path / "shared" / "source"):
        settings = BuildKnowledgeSettings(["documents.tsv"], output)
        assert _parts_folder(settings) == tmp_path / "shared" / "source.parts"


@pytest.mark.xdist_group("ray")
@pytest.mark.filterwarnings("ignore:`use_.*` is deprecated:DeprecationWarning")
def test_the_documentations_commands(
    models_folder: Path,
    plain_bert_folder: Path,
    documents_file: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Every command of docs/build-a-knowledge-source.md, in a folder that holds what the page says."""
    (tmp_path / "retriever").symlink_to(models_folder)
    (tmp_path / "generator").symlink_to(models_folder / "generator")
    (tmp_path / "e5").symlink_to(plain_bert_folder)
    (tmp_path / "gone.txt").write_text("river\n", encoding="utf-8")
    (tmp_path / "documents.tsv").write_bytes(documents_file.read_bytes())
    (tmp_path / "more").mkdir()
    (tmp_path / "more" / "a.jsonl").write_text('{"title": "king", "text": "the old king"}\n', encoding="utf-8")
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes" / "b.md").write_text("# bridge\n\na stone bridge\n", encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("RAY_ADDRESS", "local")
    page = (Path(__file__).parents[2] / "docs" / "build-a-knowledge-source.md").read_text(encoding="utf-8")
    commands = [shlex.split(line)[1:] for line in page.splitlines() if line.startswith("    ragstone ")]
    assert len(commands) == 10
    for words in commands:
        assert main(words) == 0, words
    assert len(KnowledgeSource(tmp_path / "knowledge-of-all")) == 8
    assert "answer   " in capsys.readouterr().out.splitlines()[-1]
    table = page[page.index("## What is written") : page.index("transformers' RagRetriever opens")]
    written = {line.split("`")[1].rstrip("/") for line in table.splitlines() if line.startswith("| `")}
    assert written == {path.name for path in (tmp_path / "knowledge").iterdir()}
