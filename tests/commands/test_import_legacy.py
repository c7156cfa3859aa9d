"""ragstone import-legacy: an index as DPR's own code writes it, held against transformers' LegacyIndex, and traps."""

from __future__ import annotations

import json
import os
import pickle
from pathlib import Path
from typing import Any

import faiss
import numpy as np
import pytest
from transformers.models.rag.retrieval_rag import LegacyIndex

from ragstone.__main__ import main
from ragstone.encoders.load import load_encoder
from ragstone.knowledge import legacy_pickles
from ragstone.knowledge.legacy import LegacyVectors
from ragstone.knowledge.legacy_pickles import Refusal, load
from ragstone.knowledge.manifest import Manifest
from ragstone.knowledge.source import KnowledgeSource
from tests.commands.conftest import refused

COUNT, DIMENSION = 60, 16
VECTORS = np.random.default_rng(0).standard_normal((COUNT, DIMENSION)).astype(np.float32)
ORDER = np.random.default_rng(1).permutation(COUNT)
NAME = "hf_bert_base.hnswSQ8_correct_phi_128.c_index"
QUERIES = np.random.default_rng(2).standard_normal((5, DIMENSION)).astype(np.float32)


def lengthened(vectors: np.ndarray) -> np.ndarray:
    """Vectors with one more number that brings all to the length of the longest."""
    squares = (vectors**2).sum(axis=1)
    return np.hstack([vectors, np.sqrt(squares.max() - squares)[:, None]]).astype(np.float32)


def write_legacy(folder: Path, kind: str = "hnsw", ids: Any = None, passages: Any = None) -> Path:
    """The three files that LegacyIndex reads; row i of the index is the passage ORDER[i] + 1."""
    folder.mkdir(exist_ok=True)
    stored = VECTORS[ORDER]
    if kind == "flat":
        index = faiss.IndexFlatIP(DIMENSION)
    elif kind == "hnsw":
        index, stored = faiss.IndexHNSWFlat(DIMENSION + 1, 16), lengthened(stored)
    else:
        index, stored = faiss.IndexHNSWSQ(DIMENSION + 1, faiss.ScalarQuantizer.QT_8bit, 16), lengthened(stored)
        index.train(stored)
    index.add(stored)
    faiss.write_index(index, str(folder / f"{NAME}.index.dpr"))
    ids = [str(row + 1) for row in ORDER] if ids is None else ids
    passages = (
        {str(row + 1): (f"text {row} é", f"title {row}") for row in range(COUNT)} if passages is None else passages
    )
    (folder / f"{NAME}.index_meta.dpr").write_bytes(pickle.dumps(ids))
    (folder / "psgs_w100.tsv.pkl").write_bytes(pickle.dumps(passages))
    return folder


@pytest.mark.parametrize("kind", ["hnsw", "sq8"])
def test_it_finds_what_transformers_legacy_index_finds(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    folder = write_legacy(tmp_path / "old", kind)
    assert main(["import-legacy", str(folder), "--index=flat"]) == 0
    monkeypatch.setenv("TRUST_REMOTE_CODE", "True")
    theirs = LegacyIndex(DIMENSION, str(folder))
    theirs.init_index()
    source = KnowledgeSource(folder / "ragstone")
    _, rows = source.index.search(QUERIES, 3)
    ids, vectors = theirs.get_top_docs(QUERIES, 3)
    if kind == "hnsw":
        np.testing.assert_array_equal(ORDER[rows] + 1, ids)
        np.testing.assert_array_equal(source.store.vectors(rows.ravel()).reshape(vectors.shape), vectors)
        documents = theirs.get_doc_dicts(ids)
        for row, document in zip(rows, documents, strict=True):
            found = source.store.passages(row)
            assert [p.title for p in found] == document["title"] and [p.text for p in found] == document["text"]
    else:
        np.testing.assert_allclose(source.store.vectors(np.arange(COUNT)), VECTORS[ORDER], atol=0.03)
        assert [p.title for p in source.store.passages(np.arange(COUNT))] == [f"title {row}" for row in ORDER]


@pytest.mark.parametrize(
    ("ids", "passages"),
    [
        ([int(row) + 1 for row in ORDER], None),
        (ORDER + 1, None),
        (np.array([str(row + 1) for row in ORDER], dtype=object), None),
        ([np.int64(row + 1) for row in ORDER], {row + 1: [f"text {row} é", f"title {row}"] for row in range(COUNT)}),
    ],
    ids=["numbers", "array", "array of texts", "NumPy numbers"],
)
@pytest.mark.parametrize("protocol", [2, 5])
def test_ids_and_passages_as_the_files_may_hold_them(tmp_path: Path, ids: Any, passages: Any, protocol: int) -> None:
    folder = write_legacy(tmp_path / "old", "flat", ids, passages)
    for path in (*folder.glob("*.pkl"), *folder.glob("*_meta.dpr")):
        path.write_bytes(pickle.dumps(pickle.loads(path.read_bytes()), protocol=protocol))
    assert main(["import-legacy", str(folder), f"--output_dir={tmp_path / 'new'}", "--index=flat"]) == 0
    source = KnowledgeSource(tmp_path / "new")
    np.testing.assert_array_equal(source.store.vectors(np.arange(COUNT)), VECTORS[ORDER])
    assert [p.text for p in source.store.passages([0, 59])] == [f"text {ORDER[0]} é", f"text {ORDER[59]} é"]


def test_pickles_are_read_by_another_process(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, models_folder: Path
) -> None:
    """This one could not: here, whatever unpickles fails. The source records the encoder that made the vectors."""
    folder = write_legacy(tmp_path / "old", "flat")
    paths = [folder / "psgs_w100.tsv.pkl", folder / f"{NAME}.index_meta.dpr"]
    encoder = str(models_folder / "passage_encoder")

    def refuse(*_: Any, **__: Any) -> Any:
        raise AssertionError("unpickled in the process of the command")

    with monkeypatch.context() as patched:
        for owner, names in ((pickle, ("load", "loads", "Unpickler")), (legacy_pickles, ("load", "PlainUnpickler"))):
            for name in names:
                patched.setattr(owner, name, refuse)
        with pytest.raises(AssertionError):
            list(legacy_pickles.rows(*paths))
        flags = ["--index=flat", "--dpr_ctx_encoder_model_name", encoder]
        assert main(["import-legacy", str(folder), *flags]) == 0
    manifest = Manifest.load(folder / "ragstone")
    assert manifest is not None
    assert manifest.encoder == encoder
    assert manifest.encoder_fingerprint == load_encoder(encoder, "passage").fingerprint()


def test_the_name_legacy_finds_the_converted_source(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], checkpoint_folder: Path
) -> None:
    folder = write_legacy(tmp_path / "old")
    flags = ["ask", f"--model_name_or_path={checkpoint_folder}", "--question", "who ?", "--index_name=legacy", "--json"]
    assert "--index_name legacy needs --index_path" in refused(capsys, flags)
    message = refused(capsys, [*flags, f"--index_path={folder}"])
    assert "is not converted yet" in message and f"ragstone import-legacy {folder}." in message
    assert main(["import-legacy", str(folder)]) == 0
    capsys.readouterr()
    assert main([*flags, f"--index_path={folder}"]) == 0
    for found in json.loads(capsys.readouterr().out)["passages"]:
        assert found["title"] == f"title {ORDER[found['id']]}"


class Call:
    """Unpickling it would call `function`."""

    def __init__(self, function: Any, *arguments: Any) -> None:
        self.call = function, arguments

    def __reduce__(self) -> Any:
        return self.call


@pytest.mark.parametrize("where", ["psgs_w100.tsv.pkl", f"{NAME}.index_meta.dpr"])
@pytest.mark.parametrize("deep", [False, True])
def test_code_in_a_pickle_is_refused_by_name_and_not_run(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], where: str, deep: bool
) -> None:
    folder, sprung = write_legacy(tmp_path / "old"), tmp_path / "sprung"
    trap = Call(os.system, f"touch {sprung}")
    (folder / where).write_bytes(pickle.dumps({"1": ("a text", [trap])} if deep else trap))
    message = refused(capsys, ["import-legacy", str(folder), f"--output_dir={tmp_path / 'new'}"])
    assert f"{where} is refused: it asks for posix.system, which is not plain data and may run code" in message
    assert not sprung.exists() and not (tmp_path / "new").exists()
    pickle.loads((folder / where).read_bytes())
    assert sprung.exists()


@pytest.mark.parametrize(
    ("content", "named"),
    [
        (b"cos\nsystem\n(S'true'\ntR.", "os.system"),
        (b"(S'true'\nios\nsystem\n.", "os.system"),
        (pickle.dumps(Call(eval, "1"), protocol=4), "builtins.eval"),
        (pickle.dumps(Call(getattr, "", "upper")), "builtins.getattr"),
        (b"\x80\x04\x8c\x05numpy\x8c\x0ddtype.__new__\x93.", "numpy.dtype.__new__"),
        (pickle.dumps(np.ma.masked_array([1])), "numpy.ma"),
        (pickle.dumps(Path()), "pathlib.PosixPath"),
    ],
)
def test_names_that_are_not_plain_data(tmp_path: Path, content: bytes, named: str) -> None:
    """In every way in which a pickle can name something."""
    (tmp_path / "a.pkl").write_bytes(content)
    with pytest.raises(Refusal, match=f"it asks for {named}"):
        load(tmp_path / "a.pkl")


class Built(Call):
    """Unpickling it would call `function` and give what it makes a state."""

    def __init__(self, state: Any, function: Any, *arguments: Any) -> None:
        super().__init__(function, *arguments)
        self.call = (*self.call, state)


# What a pickle says of a type whose values are Python objects, and in the end that it needs no care.
CARELESS = (*np.dtype([("x", "O")]).__reduce__()[2][:-1], 0)
LYING = Built(CARELESS, np.dtype, "V8", False, True)
NUMBERS_WITH_FIELDS = Built(CARELESS, np.dtype, "i8", False, True)
EMPTY = (np.ndarray, (0,), b"b")
REBUILD = np.arange(1).__reduce__()[0]
SCALAR: Any = np.int64(1).__reduce__()[0]  # type: ignore[index]
A_PLACE = b"A" * 8


@pytest.mark.parametrize(
    ("trap", "reason"),
    [
        (Built((1, (1,), LYING, False, A_PLACE), REBUILD, *EMPTY), "values of the type 'V8'"),
        (Built((1, (1,), NUMBERS_WITH_FIELDS, False, A_PLACE), REBUILD, *EMPTY), "values of a type with fields"),
        (Built((1, (1,), np.dtype("O"), False, A_PLACE), REBUILD, *EMPTY), "an array of objects as bytes"),
        (Built((1, (1, 1), np.dtype("i8"), False, A_PLACE), REBUILD, *EMPTY), r"an array of the shape \(1, 1\)"),
        (Call(np.ndarray, (1,), np.dtype("O"), A_PLACE), "an array of its own memory"),
        (Call(SCALAR, np.dtype("O"), A_PLACE), "an array of objects as bytes"),
        (Call(SCALAR, LYING, A_PLACE), "values of the type 'V8'"),
    ],
    ids=["type", "fields", "objects", "shape", "array", "number", "number of a type"],
)
def test_an_array_that_lies_about_its_memory_is_refused(tmp_path: Path, trap: Any, reason: str) -> None:
    """NumPy's own would take eight bytes of the file for the place of a Python object."""
    (tmp_path / "a.pkl").write_bytes(pickle.dumps([trap], protocol=4))
    with pytest.raises(Refusal, match=reason):
        load(tmp_path / "a.pkl")


@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize("protocol", [2, 5])
def test_arrays_become_lists(tmp_path: Path, order: str, protocol: int) -> None:
    arrays = [np.array(values, dtype=kind) for values, kind in (([3, -1], f"{order}i8"), (["é", "abc"], f"{order}U3"))]
    (tmp_path / "a.pkl").write_bytes(pickle.dumps(arrays, protocol=protocol))
    assert [array.values for array in load(tmp_path / "a.pkl")] == [[3, -1], ["é", "abc"]]
    (tmp_path / "a.pkl").write_bytes(pickle.dumps(arrays[0], protocol=protocol))
    assert load(tmp_path / "a.pkl") == [3, -1]


@pytest.mark.parametrize(
    ("name", "content", "part"),
    [
        ("psgs_w100.tsv.pkl", [1], "psgs_w100.tsv.pkl holds a list instead of passages by id"),
        ("psgs_w100.tsv.pkl", {"1": ("a", "b")}, "psgs_w100.tsv.pkl holds no passage for "),
        (
            "psgs_w100.tsv.pkl",
            {str(row + 1): row for row in range(COUNT)},
            "something else than a text and a title for",
        ),
        (f"{NAME}.index_meta.dpr", {"1": 1}, "holds a dict instead of a list of ids"),
        (f"{NAME}.index_meta.dpr", ["1"], "holds 60 vectors, but"),
        (f"{NAME}.index_meta.dpr", ["1"] * 61, "holds 60 vectors, but"),
        ("psgs_w100.tsv.pkl", b"no pickle", "psgs_w100.tsv.pkl is not a pickle, or is damaged"),
        (f"{NAME}.index.dpr", b"no index", "is not a FAISS index"),
    ],
)
def test_files_that_hold_something_else(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str, content: Any, part: str
) -> None:
    folder = write_legacy(tmp_path / "old")
    (folder / name).write_bytes(content if isinstance(content, bytes) else pickle.dumps(content))
    assert part in refused(capsys, ["import-legacy", str(folder), "--index=flat"])
    assert not (folder / "ragstone").exists()


def test_a_folder_without_the_files(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert "should hold one *.pkl with passages, but has none" in refused(capsys, ["import-legacy", str(tmp_path)])
    assert "There is no folder" in refused(capsys, ["import-legacy", str(tmp_path / "nowhere")])


def test_an_index_by_distance_that_is_none_of_dprs(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = write_legacy(tmp_path / "old")
    index = faiss.IndexHNSWFlat(DIMENSION + 1, 16)
    index.add(np.random.default_rng(3).standard_normal((COUNT, DIMENSION + 1)).astype(np.float32))
    faiss.write_index(index, str(folder / f"{NAME}.index.dpr"))
    assert "over vectors of unequal length: it is not one of DPR's" in refused(capsys, ["import-legacy", str(folder)])
    assert LegacyVectors(Path(write_legacy(tmp_path / "old", "flat") / f"{NAME}.index.dpr")).dimension == DIMENSION
