"""What the labels of a column are: classes, or numbers to approach. Where both are plausible, the user says it."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Iterator
from typing import Any

from datasets import ClassLabel, Dataset, IterableDataset, Value

from hf_rat.data.tables import is_number

_ARGUMENT = "label_column_name"
_SETTLES = "give do_regression=True for numbers to approach, do_regression=False for classes"


def is_missing(value: Any) -> bool:
    """Whether a label is none: nothing, blank, or not a number (as an empty field of numbers may be stored)."""
    return value is None or value != value or (isinstance(value, str) and not value.strip())


def stored_labels(rows: Dataset | IterableDataset, column: str) -> Iterator[Any]:
    """What stands in the column, row by row; nothing else is read."""
    for batch in rows.select_columns([column]).iter(1000):
        yield from batch[column]


def plain(value: Any) -> Any:
    """A value as it stood in its file, where a json file's column was read as {"json": the value as json}."""
    return json.loads(value["json"]) if isinstance(value, dict) and value.keys() == {"json"} else value


def named_classes(feature: Any) -> ClassLabel | None:
    """The named classes of a column, of one for each row or of a list of them; None where they have no names."""
    inner = getattr(feature, "feature", feature)
    return inner if isinstance(inner, ClassLabel) else None


def classes_of(rows: Dataset | IterableDataset, column: str, regression: bool | None = None) -> list[Any]:
    """The distinct values of a column of labels, in their order; none where labels are numbers to approach.

    Args:
        rows: the training split.
        column: name of its label column.
        regression: whether the labels are numbers to approach; None finds it out, or asks for it.

    Raises:
        ValueError: a row has no label or one that cannot be a label, all rows have the same one, or it takes
            `do_regression` to know what the labels are.
    """
    what, feature = f"{_ARGUMENT}={column!r}", (rows.features or {}).get(column)
    if feature is not None and not isinstance(feature, Value | ClassLabel):
        raise ValueError(f"{what}: {_why_no_labels(stored_labels(rows, column))}")
    counts: Counter[Any] = Counter()
    first: dict[Any, int] = {}
    for index, value in enumerate(stored_labels(rows, column)):
        if value != value:
            raise ValueError(f"{what}: row {index} has the label nan, a regression needs a finite number: it is empty")
        if is_missing(value):
            raise ValueError(f"{what}: row {index} of the training split has no label; fill it in or take the row out")
        first.setdefault(value, index)
        counts[value] += 1
    if len(counts) == 1:
        count = counts.total()
        rows_have = (
            "the only row of the training split has" if count == 1 else f"all {count} rows of the training split have"
        )
        every = f"{rows_have} the label {next(iter(counts))!r}"
        raise ValueError(f"{what}: {every}, so there is nothing to learn")
    numbers = {value: _number(value) for value in counts}
    if regression is None:
        regression = _is_regression(what, counts, first, numbers)
    if regression:
        odd = next((value for value, number in numbers.items() if number is None), None)
        if odd is not None:
            raise ValueError(f"{what}: row {first[odd]} has the label {odd!r}, a regression needs a number")
        return []
    _require_distinct(what, counts)
    return sorted(counts, key=None if None in numbers.values() else numbers.get)  # type: ignore[arg-type]


def _number(value: Any) -> float | None:
    if isinstance(value, bool) or (isinstance(value, str) and not is_number(value)):
        return None
    return float(value)


def _is_regression(what: str, counts: Counter[Any], first: dict[Any, int], numbers: dict[Any, float | None]) -> bool:
    """What the user did not say: fractions are numbers to approach; a few whole numbers or texts are classes."""
    total, odd = counts.total(), [value for value, number in numbers.items() if number is None]
    if odd and sum(counts[value] for value in odd) < total / 2:
        raise ValueError(
            f"{what}: row {first[odd[0]]} has {odd[0]!r}, most other rows have a number; take it out, or give "
            "do_regression=False if these are classes"
        )
    floats = [value for value in counts if isinstance(value, float)]
    if floats and any(value % 1 for value in floats):
        return True
    if floats or any(number is not None and number % 1 for number in numbers.values()):
        raise ValueError(f"{what}: row 0 has {next(iter(first))!r}; {_SETTLES}")
    if len(counts) > max(20, total / 2):
        example = repr(next(iter(counts)))
        example = example if len(example) <= 40 else f"{example[:40]}..."
        way = "do_regression=False if these are classes" if odd else _SETTLES.removeprefix("give ")
        raise ValueError(
            f"{what}: {len(counts)} different labels in {total} rows, such as {example}; name another column, or {way}"
        )
    return False


def _require_distinct(what: str, labels: Iterable[Any]) -> None:
    seen: dict[str, Any] = {}
    for value in labels:
        other = seen.setdefault(str(value).strip(), value)
        if other != value:
            raise ValueError(f"{what}: the labels {other!r} and {value!r} differ by spaces only: make them one")


def _why_no_labels(values: Iterable[Any]) -> str:
    """Of a column of lists, objects or several types: a row that shows it."""
    seen: dict[type, str] = {}
    for index, value in enumerate(map(plain, values)):
        if value is not None:
            seen.setdefault(type(value), f"row {index} has the label {value!r:.60}")
        if len(seen) == 2:
            return f"{', '.join(seen.values())}; all labels are texts, or all are numbers"
    return f"{next(iter(seen.values()), 'it has no labels')}; a label is a text or a number"
