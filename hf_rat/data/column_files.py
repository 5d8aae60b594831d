"""Files of tagged words as CoNLL's: a word and its tag on each line, a blank line after each sentence."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from hf_rat.data.reading import Reading, Unreadable, empty, undecodable

WORDS = "words"
"""The type of every column: a list of texts."""

_DOCUMENT = "-DOCSTART-"
_SPACES = re.compile(r"[ \t]+")  # a no-break space is a part of its word


def types_of(what: str, path: Path, reading: Reading) -> tuple[dict[str, str], str]:
    """column -> `WORDS`, and what is worth telling of the file.

    The first column is called "tokens" and the last one "tags", those between are left out; `reading.column_names`
    names them all instead, and all are read. A file of one column has words only.

    Args:
        what: flag and file, for errors.
        path: the file.
        reading: encoding, names of columns.

    Raises:
        ValueError: it is empty, is in another encoding, or a line has more or fewer columns than the first one.
    """
    first, words, documents = 0, 0, 0
    width = len(reading.column_names)
    try:
        for number, fields in _lines(path, reading):
            if fields and fields[0] == _DOCUMENT:
                documents += 1
                continue
            if fields and not width:
                width, first = len(fields), number
            if fields and len(fields) != width:
                wanted = f"line {first} has" if first else f"column_names={','.join(reading.column_names)!r} names"
                raise Unreadable(
                    f"{what}: line {number} has {len(fields)} columns ({' '.join(fields)[:60]}), {wanted} {width}; a "
                    "line is a word and its tag, columns are parted by spaces or tabs"
                )
            words += bool(fields)
    except UnicodeError as error:
        raise undecodable(what, path, reading, lambda text: text.count("\n\n")) from error
    if not words:
        raise empty(what)
    names = reading.column_names or (("tokens", "tags") if width > 1 else ("tokens",))
    return dict.fromkeys(names, WORDS), f"{documents} lines {_DOCUMENT} left out" if documents else ""


def rows_of(path: Path, reading: Reading, types: Mapping[str, str]) -> Iterator[dict[str, Any]]:
    """The sentences of a file that was looked through."""
    sentence: list[list[str]] = []
    for _, fields in _lines(path, reading):
        if fields and fields[0] != _DOCUMENT:
            sentence.append(fields)
        elif sentence:
            yield _row(sentence, reading, types)
            sentence = []
    if sentence:
        yield _row(sentence, reading, types)


def _row(sentence: list[list[str]], reading: Reading, types: Mapping[str, str]) -> dict[str, Any]:
    columns = list(map(list, zip(*sentence, strict=True)))
    if not reading.column_names:
        columns = [columns[0], columns[-1]][: len(types)]
    return dict(zip(types, columns, strict=True))


def _lines(path: Path, reading: Reading) -> Iterator[tuple[int, list[str]]]:
    """(number, columns) of every line; a blank one has none."""
    with path.open(encoding=reading.codec) as file:
        for number, line in enumerate(file, start=1):
            yield number, _SPACES.split(line.strip(" \t\n")) if line.strip(" \t\n") else []
