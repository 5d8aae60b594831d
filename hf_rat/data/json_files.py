"""Rows of json and jsonl files, as Python's json module reads them."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from hf_rat.data.reading import Reading, Unreadable, empty, undecodable

PLAIN = {"": "string", "int": "int64", "float": "float64", "bool": "bool", "str": "string"}
"""Name of a type here -> of `datasets`; "" is that of a column without any value."""


def types_of(what: str, path: Path, reading: Reading) -> dict[str, str]:
    """column -> type; "json" is one of lists, objects, or several types.

    Args:
        what: flag and file, for errors.
        path: the file.
        reading: the encoding.

    Raises:
        ValueError: it is empty, does not parse, or its rows are no objects.
    """
    types: dict[str, str] = {}
    count = 0
    try:
        for row in _objects(what, path, reading):
            if not isinstance(row, dict):
                raise Unreadable(f"{what}: row {count} is {row!r:.60}, it must be an object of columns and values")
            for name, value in row.items():
                types[name] = _wider(types.get(name, ""), value)
            count += 1
    except json.JSONDecodeError as error:
        raise Unreadable(f"{what} does not parse as json (row {count}: {error})") from error
    except UnicodeError as error:
        raise undecodable(what, path, reading, lambda text: text.count("\n")) from error
    if not types:
        raise empty(what)
    return types


def rows_of(path: Path, reading: Reading, types: Mapping[str, str]) -> Iterator[dict[str, Any]]:
    """The rows of a file whose types are known; a value of the type "json" is {"json": itself as json}."""
    for row in _objects("", path, reading):
        yield {name: _stored(row.get(name), kind) for name, kind in types.items()}


def _stored(value: Any, kind: str) -> Any:
    if kind not in PLAIN:
        return {"json": json.dumps(value, ensure_ascii=False)}
    return float(value) if kind == "float" and value is not None else value


def _wider(kind: str, value: Any) -> str:
    """The type of a column so far, with one more value."""
    if value is None:
        return kind
    own = type(value).__name__
    if own not in PLAIN or (own == "int" and not -(2**63) <= value < 2**63):
        return "json"
    if {kind, own} == {"int", "float"}:
        return "float"
    return own if kind in ("", own) else "json"


def _objects(what: str, path: Path, reading: Reading) -> Iterator[Any]:
    with path.open(encoding=reading.codec) as file:
        filled = (line for line in file if line.strip())
        first, second = next(filled, None), next(filled, None)
        if first is None:
            return
        try:
            json.loads(first)
            lines = second is not None or path.suffix.lower() == ".jsonl"
        except json.JSONDecodeError:
            lines = path.suffix.lower() == ".jsonl"
        file.seek(0)
        if lines:
            yield from (json.loads(line) for line in file if line.strip())
        else:
            yield from _whole(what, json.load(file))


def _whole(what: str, value: Any) -> list[Any]:
    """The rows of a json file that is one value: a list, or columns as `DataFrame.to_json()` writes them."""
    if isinstance(value, list):
        return value
    if not isinstance(value, dict) or not any(isinstance(part, list | dict) for part in value.values()):
        return [value]
    columns = list(value.values())
    if all(isinstance(column, dict) and column.keys() == columns[0].keys() for column in columns):
        return [{name: column[row] for name, column in value.items()} for row in columns[0]]
    raise Unreadable(
        f"{what}: it is one object, of {', '.join(map(repr, list(value)[:5]))}, and no list of rows; pandas writes "
        "rows with to_json(orient='records', lines=True)"
    )
