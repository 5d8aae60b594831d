"""One file of rows: csv, tsv and json as Python's own modules read them, parquet as pyarrow does.

A file is looked through once before it is used, so that a column has one type however long it is, and what is wrong
with a row is said with its number. What was read is cached by the file's content, not by its name and time.
"""

from __future__ import annotations

import glob
import hashlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import datasets
from datasets import Dataset, Features, IterableDataset, Value

from hf_rat.data import column_files, json_files, tables
from hf_rat.data.reading import Reading, Unreadable, empty

READERS = {".csv": "csv", ".tsv": "csv", ".json": "json", ".jsonl": "json", ".parquet": "parquet"}


def one_line(error: BaseException) -> str:
    """The first line of the deepest cause of an error, with its type: what a user needs of a chained traceback."""
    while error.__cause__ is not None:
        error = error.__cause__
    text = str(error).strip()
    return f"{type(error).__name__}: {text.splitlines()[0]}" if text else type(error).__name__


def reader_of(flag: str, path: str | Path, reading: Reading) -> str:
    """Which reader reads a file: "csv", "json", "parquet" or, of tagged words, "conll".

    Raises:
        ValueError: no such file, or an ending that is not known.
    """
    path = Path(path)
    if not path.is_file():
        raise ValueError(f"{flag} {str(path)!r}: no such file")
    if path.suffix.lower() not in READERS and not reading.tagged:
        raise ValueError(f"{flag} {str(path)!r}: the ending must be one of {', '.join(READERS)}")
    return READERS.get(path.suffix.lower(), "conll")


def read_file(flag: str, path: str | Path, reading: Reading | None = None) -> Dataset:
    """Read one csv, tsv, json, jsonl or parquet file, or with `reading.tagged` one of tagged words (column_files.py).

    Columns of csv and tsv files whose fields are all whole numbers, or all numbers, are that; an empty field among
    them is None. All others are text, an empty field too. A json column with lists or objects, or with values of
    several types, becomes one of objects {"json": the value as json}, which is neither text nor label. What is worth
    telling of the file stands in `info.description`.

    Args:
        flag: what the user named the file by, for the errors.
        path: exactly this file, whatever characters are in its name; its ending says how it is read.
        reading: encoding, quotes, cache; None is the defaults.

    Raises:
        ValueError: no such file, an ending that is not known, a content that does not parse, or no rows.
    """
    reading = reading or Reading()
    kind = reader_of(flag, path, reading)
    content = hashlib.sha256(Path(path).read_bytes()).hexdigest()
    note = ""
    try:
        if kind == "parquet":
            # Any option enters into the name of the cached copy, which otherwise goes by path and time.
            rows = datasets.load_dataset(
                kind, data_files=_exactly(path), split="train", cache_dir=reading.cache_dir, description=content
            )
        else:
            types, note = _look_through(kind, f"{flag} {str(path)!r}", Path(path), reading)
            options = {"kind": kind, "path": str(path), "reading": reading, "types": types, "content": content}
            features = _features(types)
            rows = Dataset.from_generator(_rows, features=features, cache_dir=reading.cache_dir, gen_kwargs=options)
    except Exception as error:  # each reader has its own exceptions; all of them mean that this file cannot be read
        raise _unreadable(flag, path, kind, error) from error
    if len(rows) == 0:
        raise empty(f"{flag} {str(path)!r}")
    rows.info.description = note
    return rows


def stream_file(flag: str, path: str | Path, reading: Reading | None = None) -> IterableDataset:
    """The same rows as a stream: what is read is kept nowhere.

    Raises:
        ValueError: as `read_file`.
    """
    reading = reading or Reading()
    kind = reader_of(flag, path, reading)
    try:
        if kind == "parquet":
            return datasets.load_dataset(kind, data_files=_exactly(path), split="train", streaming=True)
        types, _ = _look_through(kind, f"{flag} {str(path)!r}", Path(path), reading)
        options = {"kind": kind, "path": str(path), "reading": reading, "types": types}
        return IterableDataset.from_generator(_rows, features=_features(types), gen_kwargs=options)
    except Exception as error:  # each reader has its own exceptions
        raise _unreadable(flag, path, kind, error) from error


def _unreadable(flag: str, path: str | Path, kind: str, error: Exception) -> ValueError:
    if isinstance(error, Unreadable):
        return error
    if "corresponds to no data" in str(error):
        return empty(f"{flag} {str(path)!r}")
    return ValueError(f"{flag} {str(path)!r} does not parse as {kind} ({one_line(error)})")


def _exactly(path: str | Path) -> str:
    """The pattern that fits this file only: `datasets` takes names for patterns."""
    return glob.escape(str(Path(path).absolute()))


def _look_through(kind: str, what: str, path: Path, reading: Reading) -> tuple[dict[str, str], str]:
    if kind == "json":
        return json_files.types_of(what, path, reading), ""
    return (tables if kind == "csv" else column_files).types_of(what, path, reading)


def _features(types: Mapping[str, str]) -> Features:
    known: dict[str, Any] = {name: Value(kind) for name, kind in json_files.PLAIN.items()}
    known[column_files.WORDS] = [Value("string")]
    return Features({name: known.get(kind, {"json": Value("string")}) for name, kind in types.items()})


def _rows(
    kind: str, path: str, reading: Reading, types: Mapping[str, str], content: str = ""
) -> Iterator[dict[str, Any]]:
    """The rows of a file that was looked through. The cache goes by the arguments: `content` is the file's hash."""
    readers: dict[str, Any] = {"csv": tables, "json": json_files, "conll": column_files}
    return readers[kind].rows_of(Path(path), reading, types)
