"""Updating a knowledge source: what comes out is what a build from the changed documents gives."""

from __future__ import annotations

import dataclasses
import json
import os
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest

from ragstone.commands.update_knowledge import UpdateKnowledgeSettings, update_knowledge
from ragstone.encoders.fresh import fresh_encoder, train_tokenizer
from ragstone.encoders.text_encoder import TextEncoder, TokenLists
from ragstone.errors import InputError
from ragstone.knowledge.bm25 import build_bm25_source
from ragstone.knowledge.build import BuildPlan, build_knowledge_source
from ragstone.knowledge.manifest import Manifest
from ragstone.knowledge.source import KnowledgeSource
from ragstone.knowledge.update import Updated, UpdatePlan, update_knowledge_source
from ragstone.knowledge.verify import verify_source
from ragstone.replacement import new_version
from ragstone.retrieval.local import LocalRetriever
from ragstone.types import FloatArray
from tests.knowledge.test_build import WORDS

Documents = dict[str, str]


def text(seed: int, words: int) -> str:
    return " ".join(np.random.default_rng(seed).choice(WORDS, words))


DOCUMENTS: Documents = {f"title {i}": text(i, 3 + i % 25) for i in range(60)}
MORE: Documents = {f"more {i}": text(100 + i, 30) for i in range(8)}
WITHOUT = [f"title {i}" for i in (0, 7, 8, 59)]


class CountingEncoder(TextEncoder):
    """Counts the texts that it embeds."""

    embedded = 0

    def embed_tokens(self, tokens: TokenLists, **options: object) -> FloatArray:
        CountingEncoder.embedded += len(tokens["input_ids"])
        return super().embed_tokens(tokens, **options)  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def encoder() -> TextEncoder:
    fresh = fresh_encoder(train_tokenizer(WORDS.tolist(), 200), hidden_size=32)
    # A passage is its own nearest then.
    settings = dataclasses.replace(fresh.settings, normalize=True)
    return CountingEncoder(fresh.model, fresh.tokenizer, settings, fresh.name)


def write(path: Path, documents: Documents) -> Path:
    path.write_text("".join(f"{title}\t{text}\n" for title, text in documents.items()), encoding="utf-8")
    return path


def build(folder: Path, documents: Documents, encoder: TextEncoder, index: str = "flat") -> Path:
    folder.mkdir()
    file = write(folder.with_suffix(".tsv"), documents)
    build_knowledge_source([file], encoder, folder, BuildPlan(index, m=8, max_words=10, precision="fp32"))
    return folder


def update(folder: Path, encoder: TextEncoder | None, **changes: object) -> Updated:
    def opened(_: Manifest) -> TextEncoder:
        assert encoder is not None, "no encoder is needed"
        return encoder

    plan = UpdatePlan(precision="fp32", **changes)  # type: ignore[arg-type]
    with new_version(folder) as new:
        return update_knowledge_source(folder, new, plan, opened)


def assert_equal(folder: Path, expected: Path) -> None:
    """The same passages with the same vectors, the same counts, sound files."""
    found, built = KnowledgeSource(folder), KnowledgeSource(expected)
    rows = np.arange(len(built))
    assert found.store.passages(np.arange(len(found))) == built.store.passages(rows)
    np.testing.assert_allclose(found.store.vectors(rows), built.store.vectors(rows), rtol=1e-5, atol=1e-6)
    assert found.manifest is not None and built.manifest is not None
    for name in ("documents", "passages", "max_words", "index", "metric", "encoder_fingerprint", "encoder_settings"):
        assert getattr(found.manifest, name) == getattr(built.manifest, name), name
    verify_source(folder)


@pytest.mark.parametrize("index", ["flat", "hnsw", "IVF4,PQ8x4"])
@pytest.mark.parametrize(("add", "delete"), [(True, False), (False, True), (True, True)])
def test_it_is_what_a_build_gives(tmp_path: Path, encoder: TextEncoder, index: str, add: bool, delete: bool) -> None:
    folder = build(tmp_path / "source", DOCUMENTS, encoder, index)
    more = MORE if add else {}
    kept = {title: text for title, text in DOCUMENTS.items() if not delete or title not in WITHOUT}
    expected = build(tmp_path / "expected", kept | more, encoder, index)
    before = KnowledgeSource(folder)
    CountingEncoder.embedded = 0
    updated = update(
        folder,
        encoder if add else None,
        add=(write(tmp_path / "more.tsv", more),) if add else (),
        delete_titles=tuple(WITHOUT) if delete else (),
    )
    assert CountingEncoder.embedded == updated.added == (24 if add else 0), "nothing else is embedded again"
    assert len(before) - updated.deleted + updated.added == len(KnowledgeSource(folder))
    assert_equal(folder, expected)
    statistics = updated.manifest.statistics
    assert statistics["bytes"] == sum(p.stat().st_size for p in folder.rglob("*") if p.name in statistics_files(folder))
    assert statistics["recall@5"] > 0.9 or "PQ" in updated.manifest.index
    # A search finds an added passage by its own vector.
    source = KnowledgeSource(folder)
    last = source.store.vectors([len(source) - 1])
    found = LocalRetriever(source).retrieve(last, 5)
    assert add is False or "PQ" in index or len(source) - 1 in found.ids


def statistics_files(folder: Path) -> set[str]:
    return {Path(name).name for name in json.loads((folder / "knowledge.json").read_text())["files"]}


def test_documents_that_replace_others(tmp_path: Path, encoder: TextEncoder) -> None:
    folder = build(tmp_path / "source", DOCUMENTS, encoder)
    new = {"title 3": text(7, 25), "another": text(8, 5)}
    kept = {title: text for title, text in DOCUMENTS.items() if title != "title 3"}
    updated = update(folder, encoder, add=(write(tmp_path / "new.tsv", new),), replace=True)
    assert (updated.added, updated.deleted) == (4, 1)
    assert_equal(folder, build(tmp_path / "expected", kept | new, encoder))


def test_documents_of_one_title_are_counted_one_by_one(tmp_path: Path, encoder: TextEncoder) -> None:
    lines = [("same", text(1, 25)), ("same", text(2, 4)), ("other", text(3, 10)), ("same", text(4, 12))]
    (tmp_path / "a.tsv").write_text("".join(f"{title}\t{text}\n" for title, text in lines), encoding="utf-8")
    folder = tmp_path / "source"
    folder.mkdir()
    build_knowledge_source([tmp_path / "a.tsv"], encoder, folder, BuildPlan("flat", max_words=10))
    updated = update(folder, None, delete_titles=("same",))
    assert (updated.manifest.documents, updated.manifest.passages, updated.deleted) == (1, 1, 6)


def test_whoever_has_it_open_goes_on(tmp_path: Path, encoder: TextEncoder) -> None:
    folder = build(tmp_path / "source", DOCUMENTS, encoder, "hnsw")
    source = KnowledgeSource(folder)
    retriever, queries = LocalRetriever(source), source.store.vectors([0, 40])
    before, fingerprint = retriever.retrieve(queries, 5), source.info().fingerprint
    update(folder, None, delete_titles=tuple(WITHOUT))
    after = retriever.retrieve(queries, 5)
    assert after.passages == before.passages
    assert source.info().fingerprint == fingerprint != KnowledgeSource(folder).info().fingerprint
    assert source.store.passages(np.arange(len(source)))[-1].title == "title 59"


def test_an_old_version_does_not_grow_from_the_index_of_another(tmp_path: Path, encoder: TextEncoder) -> None:
    """Which has as many passages, and comes into its place while the update has the old one open."""
    folder = build(tmp_path / "source", DOCUMENTS, encoder, "hnsw")
    more = write(tmp_path / "more.tsv", MORE)
    other = write(tmp_path / "other.tsv", {"title 0": text(500, 3)})
    (tmp_path / "new").mkdir()

    def opened(_: Manifest) -> TextEncoder:
        update(folder, encoder, add=(other,), replace=True)
        return encoder

    with pytest.raises(InputError, match=f"^{folder} was updated since it was opened; open it again"):
        update_knowledge_source(folder, tmp_path / "new", UpdatePlan(add=(more,), precision="fp32"), opened)


def test_whoever_opens_it_meanwhile_finds_one_source(tmp_path: Path, encoder: TextEncoder) -> None:
    folder = build(tmp_path / "source", DOCUMENTS, encoder)
    more = write(tmp_path / "more.tsv", MORE)
    titles, done, failures = tuple(MORE), threading.Event(), []

    def change() -> None:
        try:
            for _ in range(4):
                update(folder, encoder, add=(more,))
                update(folder, None, delete_titles=titles)
        except Exception as error:
            failures.append(error)
        done.set()

    thread = threading.Thread(target=change)
    thread.start()
    sizes = set()
    while not done.is_set():
        source = KnowledgeSource(folder)
        assert source.manifest is not None
        assert source.manifest.passages == len(source) == len(source.index)
        assert source.store.passages([len(source) - 1])[0].title in ("title 59", "more 7")
        sizes.add(len(source))
    thread.join()
    assert not failures
    assert len(sizes) == 2


STOPPED = """
import json, os, shutil, signal, sys
from pathlib import Path
import ragstone
from ragstone.commands.update_knowledge import UpdateKnowledgeSettings, update_knowledge
from ragstone.knowledge.verify import verify_source

package = str(Path(ragstone.__file__).parent)
original, work, file = Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3]


def update(folder, stop_at=0, killed=False):
    calls = 0

    def watch(frame, event, _):
        nonlocal calls
        if event != "call" or not frame.f_code.co_filename.startswith(package):
            return
        calls += 1
        if calls == stop_at:
            if killed:
                os.kill(os.getpid(), signal.SIGKILL)
            raise KeyboardInterrupt

    sys.setprofile(watch)
    try:
        update_knowledge(
            UpdateKnowledgeSettings(folder, add_csv_path=[file], delete_titles=["river"], precision="fp32")
        )
    except KeyboardInterrupt:
        pass
    finally:
        sys.setprofile(None)
    return calls


def stopped(stop_at, killed):
    folder = work / f"{stop_at}-{killed}" / "source"
    shutil.copytree(original, folder)
    child = os.fork()
    if child == 0:
        update(folder, stop_at, killed)
        os._exit(0)
    os.waitpid(child, 0)
    verify_source(folder)
    same = (folder / "knowledge.json").read_bytes() == (original / "knowledge.json").read_bytes()
    beside = [str(path) for path in folder.parent.iterdir() if path != folder]
    print(json.dumps({"killed": killed, "folder": str(folder), "new": not same, "beside": beside}))


# All that a child needs is loaded before it starts, which is why the first one's calls are not the number to count to.
# With one thread, there are no others that it would lack.
for name in ("first", "second"):
    shutil.copytree(original, work / name / "source")
    calls = update(work / name / "source")
for stop_at in sorted({*range(1, calls, calls // 3), *range(calls - 10, calls + 1)}):
    for killed in (False, True):
        stopped(stop_at, killed)
"""


def test_stopped_at_any_point_it_leaves_a_whole_source(tmp_path: Path, source_folder: Path) -> None:
    """Killed by the system, which nothing can be done about, or interrupted from the keyboard."""
    file = write(tmp_path / "more.tsv", {"king": "the king of the old bridge", "hill": "a green hill"})
    (tmp_path / "work").mkdir()
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false", "HF_HUB_OFFLINE": "1"}
    command = [sys.executable, "-c", STOPPED, str(source_folder), str(tmp_path / "work"), str(file)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    stops = list(map(json.loads, done.stdout.splitlines()))
    for killed in (False, True):
        versions = [stop["new"] for stop in stops if stop["killed"] is killed]
        assert len(versions) > 12
        assert versions == sorted(versions), "it changes once and for good"
        assert set(versions) == {False, True}
    assert not any(stop["beside"] for stop in stops if not stop["killed"])
    left = [stop for stop in stops if stop["beside"]]
    assert {stop["new"] for stop in left} == {False, True}, "killed before the exchange, and right behind it"
    # The next update tidies up.
    update_knowledge(UpdateKnowledgeSettings(Path(left[0]["folder"]), delete_titles=["hill"]))
    assert not any(Path(path).exists() for path in left[0]["beside"])


def test_what_cannot_be_used_is_refused(tmp_path: Path, encoder: TextEncoder) -> None:
    folder = build(tmp_path / "source", DOCUMENTS, encoder)
    before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    more = write(tmp_path / "more.tsv", MORE)
    untitled = tmp_path / "untitled.jsonl"
    untitled.write_text('{"text": "a text"}\n', encoding="utf-8")
    other = fresh_encoder(encoder.tokenizer, hidden_size=32, seed=7)
    longer = TextEncoder(
        encoder.model, encoder.tokenizer, dataclasses.replace(encoder.settings, normalize=False), "an encoder"
    )
    for message, chosen, changes in (
        (r"has no passage of 2 of the titles that are to be deleted \('nobody', 'nothing'\)", None,
         {"delete_titles": ("title 1", "nobody", "nothing")}),
        ("No passage of .* would be left", None, {"delete_titles": tuple(DOCUMENTS)}),
        ("has no title, so --replace cannot tell", None, {"add": (untitled,), "replace": True}),
        ("There is no text in", None, {"add": (write(tmp_path / "empty.tsv", {}),)}),
        ("is another one .*; they differ in the weights, .*; give the one that built it", other, {"add": (more,)}),
        (r"; they differ in the normalisation \(True and False\)", longer, {"add": (more,)}),
    ):  # fmt: skip
        with pytest.raises(InputError, match=message):
            update(folder, chosen, **changes)  # type: ignore[arg-type]
    assert {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()} == before
    (folder / "knowledge.json").unlink()
    narrow = fresh_encoder(encoder.tokenizer, hidden_size=16)
    for message, chosen in (("makes other vectors of the passages in", other), ("makes 16; give the one", narrow)):
        with pytest.raises(InputError, match=message):
            update(folder, chosen, add=(more,))


@pytest.mark.parametrize("index", ["flat", "hnsw"])
def test_a_source_of_the_references_script(tmp_path: Path, encoder: TextEncoder, index: str) -> None:
    """It has no knowledge.json; afterwards it has all that a build records, the encoder once it was needed."""
    documents = {title: text(seed, 90) for seed, title in enumerate(DOCUMENTS)}
    plan = BuildPlan(index, m=8, precision="fp32")

    def built(folder: Path, documents: Documents) -> Path:
        folder.mkdir()
        build_knowledge_source([write(folder.with_suffix(".tsv"), documents)], encoder, folder, plan)
        return folder

    folder = built(tmp_path / "source", documents)
    (folder / "knowledge.json").unlink()
    update(folder, None, delete_titles=tuple(WITHOUT))
    manifest = Manifest.load(folder)
    assert manifest is not None and manifest.encoder_record is None
    CountingEncoder.embedded = 0
    update(folder, encoder, add=(write(tmp_path / "more.tsv", MORE),))
    assert CountingEncoder.embedded == len(MORE) + 32, "besides a sample"
    kept = {title: text for title, text in documents.items() if title not in WITHOUT}
    assert_equal(folder, built(tmp_path / "expected", kept | MORE))


def test_an_index_that_nobody_names_must_be_asked_for(tmp_path: Path, encoder: TextEncoder) -> None:
    folder = build(tmp_path / "source", DOCUMENTS, encoder, "IVF4,PQ8x4")
    (folder / "knowledge.json").unlink()
    with pytest.raises(InputError, match="say with --index which one to build"):
        update(folder, None, delete_titles=("title 1",))
    assert update(folder, None, delete_titles=("title 1",), index="flat").manifest.index == "Flat"


def test_a_source_of_words_alone(tmp_path: Path) -> None:
    folders = tmp_path / "source", tmp_path / "expected"
    kept = {title: text for title, text in DOCUMENTS.items() if title not in WITHOUT}
    for folder, documents in zip(folders, (DOCUMENTS, kept | MORE), strict=True):
        folder.mkdir()
        build_bm25_source([write(folder.with_suffix(".tsv"), documents)], folder, 10)
    with pytest.raises(InputError, match=r"--index is for vectors, and .* has none"):
        update(folders[0], None, index="flat", delete_titles=("title 1",))
    done = update(folders[0], None, add=(write(tmp_path / "more.tsv", MORE),), delete_titles=tuple(WITHOUT))
    expected = Manifest.load(folders[1])
    assert expected is not None
    for name in ("documents", "passages", "max_words", "index", "metric", "dimension"):
        assert getattr(done.manifest, name) == getattr(expected, name), name
    verify_source(folders[0])
    ours, theirs = (KnowledgeSource(folder) for folder in folders)
    rows = np.arange(len(theirs))
    assert ours.store.passages(rows) == theirs.store.passages(rows)
    question = MORE["more 3"]
    assert ours.bm25.search([question], 3)[1].tolist() == theirs.bm25.search([question], 3)[1].tolist()


def test_what_else_is_in_the_folder_stays(tmp_path: Path, encoder: TextEncoder) -> None:
    folder = build(tmp_path / "source", DOCUMENTS, encoder)
    (folder / "settings.yaml").write_text("m: 8\n", encoding="utf-8")
    (folder / "notes").mkdir()
    (folder / "notes" / "a.txt").write_text("mine", encoding="utf-8")
    update(folder, None, delete_titles=("title 1",))
    assert (folder / "settings.yaml").read_text(encoding="utf-8") == "m: 8\n"
    assert (folder / "notes" / "a.txt").read_text(encoding="utf-8") == "mine"
    verify_source(folder)


def test_an_index_over_words_is_renewed(tmp_path: Path, encoder: TextEncoder) -> None:
    folder = tmp_path / "source"
    folder.mkdir()
    file = write(tmp_path / "a.tsv", DOCUMENTS)
    build_knowledge_source([file], encoder, folder, BuildPlan("flat", max_words=10, bm25=True))
    before = KnowledgeSource(folder)
    update(folder, None, delete_titles=tuple(WITHOUT))
    after = KnowledgeSource(folder)
    assert len(after.bm25) == len(after) < len(before)
    verify_source(folder)
    with pytest.raises(InputError, match=r"holds \d+ passages, but|was updated since it was opened"):
        _ = before.bm25
