from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from ragstone.errors import InputError
from ragstone.knowledge.documents import Document, find_files, megabytes, read_documents


def read(tmp_path: Path, name: str, content: str | bytes) -> list[tuple[str, str]]:
    path = tmp_path / name
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return pairs([path])


def pairs(files: Sequence[Path]) -> list[tuple[str, str]]:
    return [(document.title, document.text) for document in read_documents(files)]


def test_tab_separated_with_csv_quoting(tmp_path: Path) -> None:
    content = 'One\tplain text\nTwo\t"a ""quoted"" word,\ta tab\nand a line"\n\nThree\tin the "middle" of it\n'
    expected = [
        ("One", "plain text"),
        ("Two", 'a "quoted" word,\ta tab\nand a line'),
        ("Three", 'in the "middle" of it'),
    ]
    assert read(tmp_path, "a.tsv", content) == expected
    assert read(tmp_path, "a", content) == expected
    assert read(tmp_path, "b.tsv", content.replace("\n", "\r\n")) == expected
    assert read(tmp_path, "c.tsv", b"\xef\xbb\xbf" + content.encode()) == expected


def test_a_csv_of_the_reference_is_tab_separated(tmp_path: Path) -> None:
    assert read(tmp_path, "my_knowledge_dataset.csv", "title\ta, b\n") == [("title", "a, b")]


def test_csv_with_a_header(tmp_path: Path) -> None:
    content = 'id,Text,Title\n1,"a, b\nc",One\n2,d,\n'
    assert read(tmp_path, "a.csv", content) == [("One", "a, b\nc"), ("", "d")]
    assert read(tmp_path, "b.csv", "text\nonly\n") == [("", "only")]


def test_jsonl(tmp_path: Path) -> None:
    content = '{"title": "One", "text": "a\\nb", "id": 1}\n\n{"text": "é"}\n{"title": null, "text": "c"}\n'
    assert read(tmp_path, "a.jsonl", content) == [("One", "a\nb"), ("", "é"), ("", "c")]


@pytest.mark.parametrize("kind", [pa.string(), pa.large_string()])
def test_parquet(tmp_path: Path, kind: pa.DataType) -> None:
    columns = {"n": [1, 2], "title": pa.array(["One", None], kind), "text": pa.array(["a", "b"], kind)}
    pq.write_table(pa.table(columns), tmp_path / "a.parquet")
    assert pairs([tmp_path / "a.parquet"]) == [("One", "a"), ("", "b")]


def test_a_folder_of_text_and_markdown(tmp_path: Path) -> None:
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub" / "River_Hill.txt").write_text("first  line\n\nsecond line\n", encoding="utf-8")
    (tmp_path / "b.md").write_text("\n# The Heading\n\nText of it.\n", encoding="utf-8")
    (tmp_path / "c.MD").write_text("No heading\nat all", encoding="utf-8")
    (tmp_path / "d.png").write_bytes(b"\x89")
    assert pairs(find_files([str(tmp_path)])) == [
        ("The Heading", "Text of it."),
        ("c", "No heading at all"),
        ("River Hill", "first line second line"),
    ]


def test_paths_globs_and_folders_in_order_and_each_once(tmp_path: Path) -> None:
    for name in ("b.tsv", "a.tsv", "deep/c.tsv", "texts/d.txt"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("t\tx\n", encoding="utf-8")

    def names(*patterns: str) -> list[str]:
        return [path.name for path in find_files([str(tmp_path / pattern) for pattern in patterns])]

    assert names("*.tsv") == ["a.tsv", "b.tsv"]
    assert names("b.tsv", "*.tsv") == ["b.tsv", "a.tsv"]
    assert names("**/*.tsv") == ["a.tsv", "b.tsv", "c.tsv"]
    assert names("text*", "deep/c.tsv") == ["d.txt", "c.tsv"]


def test_a_name_with_brackets_is_a_file_not_a_pattern(tmp_path: Path) -> None:
    (tmp_path / "a[1].tsv").write_text("t\tx\n", encoding="utf-8")
    assert pairs(find_files([str(tmp_path / "a[1].tsv")])) == [("t", "x")]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.tsv", "One\ttext\nno tab here\n", "a.tsv, line 2: 1 column"),
        ("a.tsv", "One\ttext\ttoo many\n", "a.tsv, line 1: 3 column"),
        ("a.tsv", 'One\ttext\nTwo\t"stray" quote\n', "a.tsv, line 2: a stray quote"),
        ("a.tsv", 'One\t"two\nlines"\nThree\t"never closed\n', "a.tsv, line 3: a stray quote"),
        ("a.tsv", b"One\ttext\nTwo\t\xe9\n", r"a.tsv, line 2: byte 13 is not UTF-8 \(0xe9\)"),
        ("a.csv", "name,body\na,b\n", "a.csv, line 1: the header 'name,body' has no column 'text'"),
        ("a.csv", "title,text\na,b\nc\n", "a.csv, line 3: 1 column.* instead of 2"),
        ("a.jsonl", '{"text": "a"}\n{"text": \n', "a.jsonl, line 2: not an object with title and text"),
        ("a.jsonl", '{"title": "a"}\n', "a.jsonl, line 1: not an object"),
        ("a.jsonl", '["a"]\n', "a.jsonl, line 1: not an object"),
        ("a.jsonl", '{"text": 3}\n', "a.jsonl, line 1: title and text must be strings"),
        ("a.parquet", "no parquet", "a.parquet is not a parquet file"),
    ],
)
def test_what_cannot_be_read_is_named(tmp_path: Path, name: str, content: str | bytes, message: str) -> None:
    with pytest.raises(InputError, match=message):
        read(tmp_path, name, content)


def test_parquet_columns_that_are_no_text(tmp_path: Path) -> None:
    pq.write_table(pa.table({"body": ["a"]}), tmp_path / "a.parquet")
    with pytest.raises(InputError, match="has the columns body, but none named 'text'"):
        pairs([tmp_path / "a.parquet"])
    pq.write_table(pa.table({"text": [1]}), tmp_path / "b.parquet")
    with pytest.raises(InputError, match="the column 'text' holds int64"):
        pairs([tmp_path / "b.parquet"])


def test_paths_that_name_nothing(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"There is no file .*nothing\*\.tsv"):
        find_files([str(tmp_path / "nothing*.tsv")])
    with pytest.raises(InputError, match=r"holds no \.txt or \.md files"):
        find_files([str(tmp_path)])


def test_documents_are_streamed(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text(json.dumps({"text": "good"}) + "\nbroken\n", encoding="utf-8")
    documents = read_documents([path])
    assert next(documents) == Document("", "good")
    with pytest.raises(InputError, match="line 2"):
        next(documents)


def test_how_much_there_is_to_read(tmp_path: Path) -> None:
    """A file's bytes; of parquet, which is compressed, those of the text."""
    (tmp_path / "a.tsv").write_bytes(b"title\ttext\n")
    texts = [f"{number} {'the old river ' * 100}" for number in range(1000)]
    table = pa.table({"text": texts, "other": texts})
    pq.write_table(table, tmp_path / "b.parquet", use_dictionary=False)
    (tmp_path / "c.parquet").write_bytes(b"damaged")
    assert megabytes([tmp_path / "a.tsv"]) == 11e-6
    assert megabytes([tmp_path / "b.parquet"]) == pytest.approx(sum(map(len, texts)) / 1e6, rel=0.02)
    assert megabytes([tmp_path / name for name in ("a.tsv", "c.parquet", "missing.tsv")]) == 11e-6
