"""What was read, in a line for each split: so that a wrong column or file is seen before it is trained on."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from typing import Any

from datasets import Dataset, DatasetDict, IterableDataset

from hf_rat.data.encoding import Labels
from hf_rat.data.label_columns import is_missing, plain, stored_labels
from hf_rat.data.tagged import count_spans
from hf_rat.data.task import Task

SHOWN = 8
"""Classes that are counted one by one; of more, the most and the least frequent."""


def describe(task: Task, labels: Labels, rows: DatasetDict, files: Mapping[str, str]) -> Iterator[str]:
    """A line on the columns, and one on each split that is used: where from, how many rows, how many of each class.

    Args:
        task: the row of the data set.
        labels: its labels.
        rows: the splits.
        files: split -> file, of those that come from files of one's own.
    """
    texts = " and ".join(map(repr, task.text_columns))
    kind = "numbers to approach" if labels.regression else f"{len(labels.names)} classes"
    if task.tagged:
        yield f"Data: the words are in {texts}, their tags in {task.label_column!r}, {kind}"
    else:
        yield f"Data: the text is {texts}, the label is {task.label_column!r}, {kind}"
    for split, part in rows.items():
        where = f"  {split}" + (f" ({files[split]})" if split in files else "")
        if isinstance(part, IterableDataset):
            yield f"{where}: a stream"
            continue
        told = _spans(part, task, labels) if task.tagged else _labels(part, task.label_column, labels)
        line = f"{where}: {len(part)} rows; {told}"
        yield line + (f"; {part.info.description}" if split in files and part.info.description else "")


def _labels(rows: Dataset, column: str, labels: Labels) -> str:
    stored = [] if column not in rows.column_names else map(plain, stored_labels(rows, column))
    given = [value for value in stored if not is_missing(value) and (value != -1 or -1 in labels.values)]
    if not given:
        return "without labels"
    if labels.regression:
        numbers = [value for value in given if isinstance(value, int | float)]
        return f"from {min(numbers):g} to {max(numbers):g}" if numbers else "numbers"
    several = [f"{name}: {count}" for name, count in Counter(_name(value, labels) for value in given).most_common()]
    if len(several) > SHOWN:
        several = [*several[: SHOWN - 1], f"... {several[-1]}"]
    return ", ".join(several) + (" (one class only: there is nothing to learn)" if len(several) == 1 else "")


def _name(value: Any, labels: Labels) -> str:
    return labels.names[labels.values.index(value)] if value in labels.values else str(value)


def _spans(rows: Dataset, task: Task, labels: Labels) -> str:
    """The words of a split of tagged sentences, and its spans by type. Wrong rows are refused when encoded."""
    (column,) = task.text_columns
    words = sum(map(len, _lists(rows, column)))
    known = dict(zip((*labels.values, *labels.names), labels.names * 2, strict=True))
    sentences = [[known.get(tag, "O") for tag in tags] for tags in _lists(rows, task.label_column) if tags]
    if not sentences:
        return f"{words} words without tags"
    found = count_spans(sentences)
    return f"{words} words; " + (", ".join(f"{kind}: {count}" for kind, count in found.most_common()) or "no spans")


def _lists(rows: Dataset, column: str) -> Iterator[list[Any]]:
    if column in rows.column_names:
        for batch in rows.select_columns([column]).iter(1000):
            for value in map(plain, batch[column]):
                yield value.split() if isinstance(value, str) else value if isinstance(value, list) else []
