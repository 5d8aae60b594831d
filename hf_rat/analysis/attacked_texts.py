"""Texts that were attacked elsewhere, from a file, paired with the rows that they were made of."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path

from datasets import Dataset

from hf_rat.analysis.rows import Rows
from hf_rat.data.encoding import texts_of
from hf_rat.data.files import read_file
from hf_rat.data.loading import require_columns
from hf_rat.data.reading import Reading

ROW = "row"
"""The column that says which row of the split, from 0, a text was made of."""


def read_attacked(path: Path, rows: Rows) -> tuple[list[int], list[tuple[str, ...]]]:
    """Which of the rows were attacked, and their texts then.

    Args:
        path: a csv, tsv, json, jsonl or parquet file with the text columns of the data, and, unless it has a text for
            each of the rows in their order, a column "row". What it has beside is compared with the rows: their label
            by the name of its column, their texts before the attack as "original_<column>".
        rows: as they are.

    Returns:
        Places in `rows`, ascending, and the texts of each.

    Raises:
        ValueError: a column is missing, or what it says of a row is not so.
    """
    what = f"--texts {str(path)!r}"
    found = read_file("--texts", path, Reading(text=(*rows.columns, *(f"original_{name}" for name in rows.columns))))
    require_columns(found.column_names, rows.columns, what)
    places = _places(found, rows, what)
    texts = list(zip(*texts_of(found[:], rows.columns, 0, what), strict=True))
    for line, place in enumerate(places):
        _require_same(found, line, rows, place, what)
    order = sorted(range(len(places)), key=places.__getitem__)
    return [places[line] for line in order], [texts[line] for line in order]


def only(rows: Rows, places: Sequence[int]) -> Rows:
    """Some of the rows."""
    parts = {name: tuple(getattr(rows, name)[place] for place in places) for name in ("texts", "targets", "numbers")}
    return dataclasses.replace(rows, **parts)


def _places(found: Dataset, rows: Rows, what: str) -> list[int]:
    if ROW not in found.column_names:
        if len(found) != len(rows):
            raise ValueError(
                f"{what} has {len(found)} texts for {len(rows)} rows: give one for each in their order, or say in a "
                f"column {ROW!r} which row, from 0, each was made of"
            )
        return list(range(len(rows)))
    place_of = {number: place for place, number in enumerate(rows.numbers)}
    places = []
    for line, number in enumerate(found[ROW]):
        if number not in place_of:
            raise ValueError(
                f"{what}: line {line} is of row {number!r}, which is none of the {len(rows)} rows studied"
            )
        places.append(place_of[number])
    if len(set(places)) < len(places):
        twice = next(number for number in found[ROW] if found[ROW].count(number) > 1)
        raise ValueError(f"{what}: row {twice} stands there twice")
    return places


def _require_same(found: Dataset, line: int, rows: Rows, place: int, what: str) -> None:
    row, number = found[line], rows.numbers[place]
    if rows.label_column in row:
        label = rows.labels.number(row[rows.label_column], line, what)
        if label != rows.targets[place]:
            raise ValueError(
                f"{what}: line {line} has the label {row[rows.label_column]!r} and row {number} of the data has "
                f"another one: it was not made of this row"
            )
    for name, text in zip(rows.columns, rows.texts[place], strict=True):
        if row.get(f"original_{name}", text) != text:
            raise ValueError(f"{what}: line {line} has another original_{name} than the {name} of row {number}")
