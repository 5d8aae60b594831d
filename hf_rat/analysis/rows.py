"""The rows that models are studied on: texts with labels, the same for all of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from datasets import Dataset, DatasetDict

from hf_rat.data.encoding import Labels, texts_of
from hf_rat.data.generated import GENERATED, example_pairs
from hf_rat.data.generated_reviews import REVIEWS, generated_reviews
from hf_rat.data.loading import require_rows
from hf_rat.data.task import Task
from hf_rat.data.tasks import CLUE, TEXTS, find
from hf_rat.finetuning.flag_names import errors_in_flags
from hf_rat.finetuning.flags import read_flags
from hf_rat.finetuning.prepare import SOURCES, load

SPLITS = ("validation", "test", "train")
TRAINED_ON = ("validation_from_train", "train_size", "max_train_samples")
"""The flags that say which of the rows for training a run had."""
_EXAMPLES = {
    GENERATED.name: (GENERATED, example_pairs),
    REVIEWS.name: (REVIEWS, lambda seed: generated_reviews(seed=seed)),
}
_KNOWN = {task.name: task for task in (*TEXTS, *CLUE)}


@dataclass(frozen=True)
class Rows:
    """Texts and their labels.

    Args:
        labels: the label set of the data.
        texts: of each row, one or two of them.
        targets: of each row, the data set's class number, or the number of a regression.
        numbers: of each row, where it stands in its split, from 0.
        columns: names of the columns of the texts.
        label_column: of the labels.
    """

    labels: Labels
    texts: tuple[tuple[str, ...], ...]
    targets: tuple[float | int, ...]
    numbers: tuple[int, ...]
    columns: tuple[str, ...] = ("text",)
    label_column: str = "label"

    def __len__(self) -> int:
        return len(self.texts)


@errors_in_flags()
def read_rows(
    record: Mapping[str, Any], given: Mapping[str, Any], split: str = "validation", max_samples: int | None = None
) -> Rows:
    """The rows of a split.

    Args:
        record: of a run, as `recorded_data` gives it; it may be empty.
        given: flags of the user's, which go before those of the record. One that names a source replaces it.
        split: "validation" (the first split that the run was scored on), "test", which must have labels, or "train"
            (the rows that the run was trained on).
        max_samples: draw so many rows, by a fixed seed; None or more than there are: all, in their order.

    Raises:
        ValueError: there are no such rows, or nothing says which.
    """
    flags = flags_of(record, given)
    named = [f"--{name} {flags[name]!r}" for name in SOURCES if flags.get(name)]
    if len(named) > 1 and (flags.get("task_name") or flags.get("dataset_name")):
        raise ValueError(
            f"{named[0]} and {named[1]} name two data sets: keep one of them; files need a --train_file, which says "
            "what the labels are"
        )
    if not named:
        if record.get("task") not in _EXAMPLES:
            raise ValueError(f"nothing says which data: give {', '.join('--' + name for name in SOURCES[:3])}")
        task, make = _EXAMPLES[record["task"]]
        made = make(record["seed"])
        if split not in made:
            raise ValueError(f"--split {split}: the built-in example has {', '.join(made)}")
        return _draw(made[split], task, Labels.of_task(task), f"the built-in example, split {split}", max_samples)
    task, labels, loaded = _load(flags, split)
    if task.tagged or not task.label_column:
        raise ValueError(f"{task.name}: its rows are no texts with a label each")
    if split == "test" and not task.test[0].labelled:
        raise ValueError(f"--split test: the test split of {task.name} has no labels; leave it out")
    if split == "train":
        assert task.train is not None, "_load has read it"
        part, first = task.train, flags.get("max_train_samples")
    else:
        part, first = (task.evaluation[0] if split == "validation" else task.test[0]).split, None
    rows = loaded[part] if first is None else loaded[part].select(range(min(first, len(loaded[part]))))
    return _draw(rows, task, labels, f"{task.name}, split {part}", max_samples)


def flags_of(record: Mapping[str, Any], given: Mapping[str, Any]) -> dict[str, Any]:
    """The flags of a record, and those that are given in their place."""
    kept = dict(record.get("flags", {}))
    if given.get("task_name") or given.get("dataset_name") or given.get("train_file"):
        own = (*SOURCES, "dataset_config_name", "text_column_names", "label_column_name", "do_regression")
        kept = {name: value for name, value in kept.items() if name not in (*own, *TRAINED_ON)}
    return {**kept, **given}


def _load(given: Mapping[str, Any], split: str) -> tuple[Task, Labels, DatasetDict]:
    held = split != "test" and given.get("validation_from_train") is not None
    work = {
        "do_train": held or split == "train",
        "do_eval": held or split == "validation",
        "do_predict": split == "test",
    }
    if not held:
        given = {name: value for name, value in given.items() if name != "validation_from_train"}
    flags = read_flags({**given, **work, "report_to": "none"})
    if flags.data.task_name is not None:
        return load(flags, find(flags.data.task_name))
    return load(flags, _KNOWN.get((flags.data.dataset_name or "").lower()))


def _draw(rows: Dataset, task: Task, labels: Labels, what: str, limit: int | None) -> Rows:
    require_rows(rows, what)
    numbers: Sequence[int] = range(len(rows))
    if limit is not None and limit < len(rows):
        numbers = sorted(np.random.default_rng(0).choice(len(rows), limit, replace=False).tolist())
        rows = rows.select(numbers)
    columns = texts_of(rows[:], task.text_columns, 0, what)
    targets = [labels.number(value, row, what) for row, value in zip(numbers, rows[task.label_column], strict=True)]
    texts = tuple(zip(*columns, strict=True))
    return Rows(labels, texts, tuple(targets), tuple(numbers), task.text_columns, task.label_column)
