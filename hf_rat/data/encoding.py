"""From rows of text to what a model is fed: label numbers and token numbers."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
from datasets import ClassLabel, Dataset, Features, IterableDataset, Value
from transformers import PreTrainedTokenizerBase

from hf_rat.data.label_columns import classes_of, is_missing, plain
from hf_rat.data.task import Task


@dataclass(frozen=True)
class Labels:
    """The labels of a data set and the numbers a model gives them.

    Args:
        names: label names; the position is the data set's own number. Empty for regression.
        values: what stands in the label column for each of `names`: a number, or the name itself.
        to_model: the model's number of each of `names`; a pretrained classifier may have its own order.
    """

    names: tuple[str, ...]
    values: tuple[Any, ...]
    to_model: tuple[int, ...]

    @classmethod
    def of_task(cls, task: Task) -> Labels:
        """The labels of a row of `tasks.py`: the column stores their position."""
        numbers = tuple(range(len(task.labels)))
        return cls(task.labels, numbers, numbers)

    @classmethod
    def of_column(cls, rows: Dataset | IterableDataset, column: str, regression: bool | None = None) -> Labels:
        """The labels found in a column: a `ClassLabel`'s names, the sorted distinct values, or numbers to regress.

        Args:
            rows: the training split.
            column: name of its label column.
            regression: whether the labels are numbers to regress; None finds it out, or asks for the flag.

        Raises:
            ValueError: as `classes_of`.
        """
        feature = (rows.features or {}).get(column)
        if isinstance(feature, ClassLabel):
            if regression:
                raise ValueError(f"do_regression: the labels of {column!r} are classes, {feature.names}")
            return cls.of_names(feature.names)
        found = classes_of(rows, column, regression)
        return cls(tuple(map(str, found)), tuple(found), tuple(range(len(found))))

    @classmethod
    def of_names(cls, names: Sequence[str]) -> Labels:
        """Labels that the data set numbers in this order."""
        numbers = tuple(range(len(names)))
        return cls(tuple(names), numbers, numbers)

    @property
    def regression(self) -> bool:
        """Whether the label is a number to be approached rather than a class."""
        return not self.names

    def in_order_of(self, label2id: Mapping[str, int]) -> Labels | None:
        """The same labels numbered as a pretrained classifier numbers them; None when its names are others.

        Args:
            label2id: the model configuration's mapping; case does not count.
        """
        numbers = {name.lower(): number for name, number in label2id.items()}
        wanted = [name.lower() for name in self.names]
        if sorted(numbers) != sorted(wanted) or sorted(numbers.values()) != list(range(len(wanted))):
            return None
        return Labels(self.names, self.values, tuple(int(numbers[name]) for name in wanted))

    @property
    def id2label(self) -> dict[int, str]:
        """Name of each of the model's numbers."""
        return dict(sorted(zip(self.to_model, self.names, strict=True)))

    def from_model(self, numbers: np.ndarray) -> np.ndarray:
        """The data set's numbers for the model's, elementwise."""
        back = np.empty(len(self.to_model), dtype=np.int64)
        back[list(self.to_model)] = np.arange(len(self.to_model))
        return back[numbers]

    def number(self, value: Any, index: int, what: str) -> float | int:
        """The model's number for what stands in the label column of row `index`, or a regression's number.

        Raises:
            ValueError: it is outside the label set, or is not a finite number in a regression.
        """
        value = plain(value)
        why = ": it is empty" if is_missing(value) else ""
        if self.regression:
            try:
                number = float(value)
            except (TypeError, ValueError):
                number = float("nan")
            if not np.isfinite(number):
                raise ValueError(
                    f"{what}: row {index} has the label {value!r}, a regression needs a finite number{why}"
                )
            return number
        try:
            return _numbers(self.names, self.values, self.to_model)[value]
        except (KeyError, TypeError):
            raise ValueError(
                f"{what}: row {index} has the label {value!r}, which is outside the label set {list(self.values)}{why}"
            ) from None

    def encode(self, rows: Dataset, column: str, what: str) -> Dataset:
        """Replace the label column by a column "label" of the model's numbers (float32 for regression).

        Args:
            rows: one split.
            column: name of its label column.
            what: flag and split, for the error.

        Raises:
            ValueError: a label is outside the label set, or is not a finite number in a regression.
        """
        if column != "label" and "label" in rows.column_names:
            rows = rows.remove_columns("label")
        # Batch by batch and into a file: no column is ever in memory as a whole.
        features = rows.remove_columns(column).features | {"label": Value("float32" if self.regression else "int64")}
        return rows.map(
            lambda batch, indices: {
                "label": [self.number(v, i, what) for v, i in zip(batch[column], indices, strict=True)]
            },
            batched=True,
            with_indices=True,
            remove_columns=column,
            features=Features(features),
            desc="Numbering labels",
        )


# Not a property that is kept in Labels: the cache of encoded rows goes by the hash of what encodes them.
@cache
def _numbers(names: tuple[str, ...], values: tuple[Any, ...], to_model: tuple[int, ...]) -> dict[Any, int]:
    """The model's number of each value, and of its name: "1" in one file is 1 in another."""
    return dict(zip((*names, *values), to_model * 2, strict=True))


def require_texts(rows: Dataset, columns: Iterable[str], what: str) -> None:
    """Check that the columns hold text in every row; an empty one is text.

    Raises:
        ValueError: a row has something else.
    """
    index = 0
    for batch in rows.select_columns(list(columns)).iter(1000):
        index += len(texts_of(batch, tuple(batch), index, what)[0])


def texts_of(batch: Mapping[str, list[Any]], columns: Sequence[str], first: int, what: str) -> list[list[str]]:
    """The text columns of a batch.

    Args:
        batch: column -> values.
        columns: one or two.
        first: number of the batch's first row, for the error.
        what: flag and split, for the error.

    Raises:
        ValueError: a row has no text.
    """
    texts = [[plain(value) for value in batch[column]] for column in columns]
    for column, values in zip(columns, texts, strict=True):
        for index, text in enumerate(values, first):
            if not isinstance(text, str):
                raise ValueError(f"{what}: row {index} has {text!r} in the column {column!r}, which must be text")
    return texts


def tokenize(
    rows: Dataset,
    tokenizer: PreTrainedTokenizerBase,
    text_columns: Iterable[str],
    max_length: int,
    pad: bool = False,
    fresh: bool = False,
    what: str = "",
) -> Dataset:
    """Add the tokenizer's columns to the rows.

    Args:
        rows: one split.
        tokenizer: of the model.
        text_columns: one or two columns, in the order the model sees them.
        max_length: tokens at most, special tokens included; longer texts are cut.
        pad: pad every row to `max_length`; otherwise the collator pads each batch to its longest row.
        fresh: do not reuse what an earlier run cached.
        what: flag and split, for the error.

    Raises:
        ValueError: a row has no text.
    """
    columns = tuple(text_columns)

    def encode(batch: Mapping[str, list[Any]], indices: list[int]) -> Mapping[str, list]:
        texts = texts_of(batch, columns, indices[0], what)
        return tokenizer(*texts, padding="max_length" if pad else False, max_length=max_length, truncation=True)

    return rows.map(encode, batched=True, with_indices=True, load_from_cache_file=not fresh, desc="Tokenizing")
