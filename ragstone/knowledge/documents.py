"""Files to documents, one at a time: tab-separated, csv, jsonl, parquet, folders of text. Errors name file and line."""

from __future__ import annotations

import csv
import glob
import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from ragstone.data.lines import read_lines
from ragstone.errors import InputError
from ragstone.progress import ProgressBar

TEXT_SUFFIXES = (".txt", ".md")
LONGEST_FIELD = 2**31 - 1
MEGABYTE = 1e6


@dataclass(frozen=True, slots=True)
class Document:
    """A text with a title, before it is split into passages."""

    title: str
    text: str


def find_files(patterns: Sequence[str], flag: str = "--csv_path") -> list[Path]:
    """The files that paths, globs and folders name, in order and each once; a folder gives its .txt and .md files.

    Args:
        patterns: the paths and globs.
        flag: how the user gave them, for messages.

    Raises:
        InputError: a path or pattern names nothing.
    """
    files: list[Path] = []
    for pattern in patterns:
        exists = Path(pattern).exists()
        # Path.glob takes no absolute pattern.
        paths = [pattern] if exists else sorted(glob.glob(pattern, recursive=True))  # noqa: PTH207
        if not paths:
            raise InputError(f"There is no file {pattern}; give {flag} files, folders or globs that exist.")
        found = [file for path in paths for file in _files_of(Path(path))]
        if not found:
            raise InputError(f"The folder {pattern} holds no .txt or .md files; give {flag} one that does.")
        files += found
    return list(dict.fromkeys(files))


def _files_of(path: Path) -> list[Path]:
    if not path.is_dir():
        return [path]
    return sorted(file for file in path.rglob("*") if file.suffix.lower() in TEXT_SUFFIXES and file.is_file())


def read_documents(files: Sequence[Path], progress: ProgressBar | None = None) -> Iterator[Document]:
    """All documents of `files`, streamed; `progress` counts their megabytes.

    A .csv whose first line has a tab is read as the reference read it: tab-separated title and text, no header.

    Raises:
        InputError: names file and line of what cannot be read.
    """
    done = 0.0
    for path in files:
        size, read = megabytes([path]), 0.0
        for document in _reader(path)(path):
            yield document
            if progress is not None:
                read += (len(document.title.encode()) + len(document.text.encode())) / MEGABYTE
                progress.move_to(done + min(read, size))
        done += size
        if progress is not None:
            progress.move_to(done)


def megabytes(files: Sequence[Path]) -> float:
    """How much there is to read; nothing of a file that cannot be read, which its reader will say."""
    return sum(_bytes(path) for path in files) / MEGABYTE


def _bytes(path: Path) -> int:
    try:
        return _parquet_bytes(path) if path.suffix.lower() == ".parquet" else path.stat().st_size
    except OSError:
        return 0


def _parquet_bytes(path: Path) -> int:
    """Of the columns that are read, as they are when they are not compressed."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        metadata = pq.read_metadata(path)
    except pa.ArrowException:
        return 0
    groups = (metadata.row_group(group) for group in range(metadata.num_row_groups))
    columns = (group.column(column) for group in groups for column in range(group.num_columns))
    return sum(column.total_uncompressed_size for column in columns if column.path_in_schema in ("title", "text"))


def _reader(path: Path) -> Callable[[Path], Iterator[Document]]:
    readers: dict[str, Callable[[Path], Iterator[Document]]] = {
        ".csv": _read_csv,
        ".jsonl": _read_jsonl,
        ".parquet": _read_parquet,
        ".txt": _read_text,
        ".md": _read_text,
    }
    return readers.get(path.suffix.lower(), _read_tsv)


def _read_tsv(path: Path) -> Iterator[Document]:
    for line, row in csv_rows(path, delimiter="\t"):
        if len(row) != 2:
            raise InputError(
                f"{path}, line {line}: {len(row)} column(s) instead of 2; a document is a title, a tab and a text "
                '(a text that holds tabs or quotes is put in "quotes", with inner quotes doubled).'
            )
        yield Document(title=row[0], text=row[1])


def _read_csv(path: Path) -> Iterator[Document]:
    first = next(iter(read_lines(path)), "")
    if "\t" in first:
        yield from _read_tsv(path)
        return
    rows = csv_rows(path, delimiter=",")
    _, header = next(rows, (1, []))
    names = [name.strip().lower() for name in header]
    if "text" not in names:
        raise InputError(
            f"{path}, line 1: the header {','.join(header)!r} has no column 'text'; a .csv file begins with the names "
            "of its columns, among them title and text."
        )
    for line, row in rows:
        if len(row) != len(names):
            raise InputError(
                f"{path}, line {line}: {len(row)} column(s) instead of {len(names)} as in the header; put a text that "
                'holds commas in "quotes".'
            )
        values = dict(zip(names, row, strict=True))
        yield Document(title=values.get("title", ""), text=values["text"])


def csv_rows(path: Path, delimiter: str) -> Iterator[tuple[int, list[str]]]:
    """Rows with the number of the line that each begins on; blank lines are passed over."""
    csv.field_size_limit(LONGEST_FIELD)
    reader = csv.reader((line + "\n" for line in read_lines(path)), delimiter=delimiter, strict=True)
    while True:
        begin = reader.line_num + 1
        try:
            row = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            raise InputError(
                f'{path}, line {begin}: a stray quote ({error}); put a text that holds quotes in "quotes" and double '
                "the inner ones."
            ) from error
        if row:
            yield begin, row


def _read_jsonl(path: Path) -> Iterator[Document]:
    for number, line in enumerate(read_lines(path), start=1):
        if not line.strip():
            continue
        try:
            record = json.loads(line)
            title, text = record.get("title") or "", record["text"]
        except (ValueError, KeyError, AttributeError) as error:
            raise InputError(
                f"{path}, line {number}: not an object with title and text ({error}); "
                'a line reads {"title": "...", "text": "..."}.'
            ) from error
        if not isinstance(text, str) or not isinstance(title, str):
            raise InputError(f"{path}, line {number}: title and text must be strings.")
        yield Document(title=title, text=text)


def _read_parquet(path: Path) -> Iterator[Document]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        file = pq.ParquetFile(path)
    except (OSError, pa.ArrowException) as error:
        raise InputError(f"{path} is not a parquet file ({error}); save it as parquet again.") from error
    names = file.schema_arrow.names
    if "text" not in names:
        raise InputError(f"{path} has the columns {', '.join(names)}, but none named 'text'; rename that of the texts.")
    columns = [name for name in ("title", "text") if name in names]
    for name in columns:
        kind = file.schema_arrow.field(name).type
        if not (pa.types.is_string(kind) or pa.types.is_large_string(kind)):
            raise InputError(f"{path}: the column {name!r} holds {kind}, but title and text must be strings.")
    try:
        for batch in file.iter_batches(columns=columns):
            for row in batch.to_pylist():
                yield Document(title=row.get("title") or "", text=row["text"] or "")
    except (OSError, pa.ArrowException) as error:
        raise InputError(f"{path} is damaged ({error}); save it again.") from error


def _read_text(path: Path) -> Iterator[Document]:
    """A file is a document; its title is its name, or its first line where that is a heading."""
    lines = list(read_lines(path))
    title = path.stem.replace("_", " ")
    first = next((line for line in lines if line.strip()), "")
    if path.suffix.lower() == ".md" and first.startswith("# "):
        title = first.removeprefix("# ").strip()
        lines.remove(first)
    yield Document(title=title, text=" ".join(" ".join(lines).split()))
