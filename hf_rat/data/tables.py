"""Rows of csv and tsv files, as Python's csv module reads them."""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hf_rat.data.reading import QUOTING, Reading, Unreadable, empty, undecodable

TEXTS = frozenset(
    ("text", "sentence", "sentence1", "sentence2", "question", "question1", "question2", "premise", "hypothesis")
)
"""Columns that are text by their name, whatever stands in them."""

_INTEGER = re.compile(r"[+-]?(?:0|[1-9]\d{0,17})", re.ASCII)  # 007 is a code, and longer ones leave int64
_NUMBER = re.compile(r"[+-]?(?:(?:0|[1-9]\d*)\.\d*|\.\d+|(?:0|[1-9]\d*)(?=[eE]))(?:[eE][+-]?\d+)?", re.ASCII)
_QUOTED = re.compile(r'"((?:[^"]|"")*)"')


def is_number(text: str) -> bool:
    """Whether a text is a number as programs write them."""
    return _wider("", text) in ("int", "float")


@dataclass
class Quotes:
    """How many fields of a file whose quotes are characters have quotes, and which."""

    whole: int = 0
    doubled: int = 0
    other: int = 0

    def see(self, field: str) -> None:
        """Count one field."""
        inner = _QUOTED.fullmatch(field)
        self.whole += inner is not None
        self.doubled += inner is not None and '""' in inner[1]
        self.other += inner is None


def types_of(what: str, path: Path, reading: Reading) -> tuple[dict[str, str], str]:
    """column -> type ("int", "float", "str", or "" where all fields are empty), and what is worth telling of the file.

    Args:
        what: flag and file, for errors.
        path: the file.
        reading: encoding, quotes, names of columns.

    Raises:
        ValueError: it is empty, is in another encoding, or a row has more or fewer fields than there are columns.
    """
    try:
        return _types_of(what, path, reading)
    except UnicodeError as error:
        raise undecodable(what, path, reading, lambda text: _count(text, path, reading)) from error


def _types_of(what: str, path: Path, reading: Reading) -> tuple[dict[str, str], str]:
    types = dict.fromkeys(reading.column_names, "")
    quotes, literal = Quotes(), reading.quotes(path) == "none"
    rows, line = (0 if types else -1), 0
    with _opened(path, reading) as records:
        try:
            for end, fields in records:
                if rows < 0:
                    types = dict.fromkeys(_header(what, fields), "")
                elif len(fields) != len(types):
                    row = f"row {rows} (line {line + 1})"
                    raise Unreadable(f"{what}: {row} has {_ragged(path, reading, len(fields), list(types))}")
                else:
                    for name, field in zip(types, fields, strict=True):
                        types[name] = types[name] if types[name] == "str" else _wider(types[name], field)
                        if literal and '"' in field:
                            quotes.see(field)
                rows, line = rows + 1, end
        except csv.Error as error:
            row = f"row {rows} (line {line + 1})" if rows >= 0 else "the first line"
            way = 'quotes inside of a field in quotes are doubled: "like ""this"""; or give quoting=none'
            raise Unreadable(f"{what} does not parse as csv: {row}: {error}; {way}") from error
    if rows < 1:
        raise empty(what if rows == 0 else f"{what} does not parse as csv")
    types |= dict.fromkeys(types.keys() & (TEXTS | {*reading.text}), "str")
    return types, _note(what, quotes) if reading.quoting is None else ""


def rows_of(path: Path, reading: Reading, types: Mapping[str, str]) -> Iterator[dict[str, Any]]:
    """The rows of a file whose types are known."""
    with _opened(path, reading) as records:
        if not reading.column_names:
            next(records)
        for _, fields in records:
            yield {name: _value(field, kind) for (name, kind), field in zip(types.items(), fields, strict=True)}


def _value(field: str, kind: str) -> Any:
    if kind == "str":
        return field
    if not field.strip():
        return None if kind else ""
    return int(field) if kind == "int" else float(field)


@contextmanager
def _opened(path: Path, reading: Reading) -> Iterator[Iterator[tuple[int, list[str]]]]:
    """The records of a file."""
    limit = csv.field_size_limit(2**31 - 1)  # a whole document may be one field
    try:
        with path.open(encoding=reading.codec, newline="") as file:
            yield _records(file, path, reading)
    finally:
        csv.field_size_limit(limit)


def _records(
    lines: Iterable[str], path: Path, reading: Reading, strict: bool = True
) -> Iterator[tuple[int, list[str]]]:
    """(line on which it ends, fields) of each record; blank lines are left out."""
    separator = "\t" if path.suffix.lower() == ".tsv" else ","
    reader = csv.reader(lines, delimiter=separator, quoting=QUOTING[reading.quotes(path)], strict=strict)
    return ((reader.line_num, fields) for fields in reader if fields)


def _count(text: str, path: Path, reading: Reading) -> int:
    """Number of rows that end before the last record of a text."""
    records = sum(1 for _ in _records(io.StringIO(text + "?", newline=""), path, reading, strict=False))
    return max(records - 1 - (not reading.column_names), 0)


def _wider(kind: str, field: str) -> str:
    """The type of a column so far, with one more field."""
    field = field.strip()
    if not field:
        return kind
    if _INTEGER.fullmatch(field):
        return kind or "int"
    return "float" if _NUMBER.fullmatch(field) else "str"


def _header(what: str, fields: list[str]) -> list[str]:
    """The names of the columns. One without a name, as pandas writes its index, is called as pandas calls it."""
    names = [name.strip() or f"Unnamed: {index}" for index, name in enumerate(fields)]
    if any("\0" in name for name in names):
        raise Unreadable(f"{what}: the first line has NUL characters; give encoding=, perhaps utf-16-le")
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice is not None:
        raise Unreadable(
            f"{what}: two columns are called {twice!r}; rename one, or give column_names= if the first line is a row"
        )
    other = next((mark for mark in ";\t|," if len(names) == 1 and mark in names[0]), None)
    if other is not None:
        raise Unreadable(
            f"{what}: the first line is one field, {names[0]!r}, with {other!r} in it; fields of a .csv are separated "
            "by commas, those of a .tsv by tabs"
        )
    if all(_QUOTED.fullmatch(name) for name in names):
        raise Unreadable(f"{what}: the names of the columns are in quotes; quoting=minimal takes them off")
    return names


def _ragged(path: Path, reading: Reading, found: int, names: list[str]) -> str:
    wanted = f"column_names={','.join(names)!r} names" if reading.column_names else "the first line has"
    if reading.quotes(path) == "none":
        way = "a text has no tab and no line break, unless it is in quotes and quoting=minimal is given"
    else:
        way = 'a text with a comma is written in quotes: "good, really good"'
    return f"{found} field{'s' * (found != 1)}, {wanted} {len(names)} ({', '.join(names)}); {way}"


def _note(what: str, quotes: Quotes) -> str:
    if quotes.doubled and not quotes.other:
        raise Unreadable(
            f"{what}: all fields with quotes are in quotes and have them doubled inside, as Excel writes a text: "
            "quoting=minimal takes these quotes off, quoting=none keeps them"
        )
    if not quotes.whole:
        return ""
    fields = "1 field is" if quotes.whole == 1 else f"{quotes.whole} fields are"
    return f"quotes are characters; {fields} wholly in quotes, which quoting=minimal takes off"
