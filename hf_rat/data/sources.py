"""Where rows come from: a data set that has a row in `tasks.py`, another one of the Hub, or files of one's own.

Each source reads the asked splits: source.read(splits) -> the row of the data set, its labels, the splits.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from datasets import Dataset, DatasetDict

from hf_rat.data.encoding import Labels
from hf_rat.data.files import stream_file
from hf_rat.data.label_columns import is_missing, stored_labels
from hf_rat.data.loading import load_dataset, load_files, load_task, require_columns
from hf_rat.data.reading import Reading
from hf_rat.data.streaming import columns_of, sample_of, stream_hub
from hf_rat.data.tagged import TAGS, WORDS, column_of, has_tags, tag_labels
from hf_rat.data.task import HeldOut, Task
from hf_rat.data.text_columns import text_columns_of

Read = tuple[Task, Labels, DatasetDict]


class Source(Protocol):
    """Something to read."""

    def read(self, splits: Collection[str]) -> Read:
        """The row of the data set, its labels, and the asked splits; of files of one's own, all that are given.

        Args:
            splits: names of the splits that are needed.

        Raises:
            ValueError: in one line, what is missing or cannot be read, or which flag is needed to know what is what.
        """


@dataclass(frozen=True)
class Wanted:
    """Which columns are texts and labels, and what else every source is wanted.

    Args:
        texts: the one or two text columns; none are found by their names.
        label: the label column; None is the data set's own, or "label".
        regression: whether labels are numbers to approach; None finds it out.
        streaming: whether the training split is read as it is needed.
        cache_dir: where `datasets` keeps its copies; None is its own default.
        token: for data sets on the Hub that ask for one.
        tagged: whether rows are sentences whose words have a tag each.

    Raises:
        ValueError: more than two text columns (one of tagged words), or the label column among them.
    """

    texts: tuple[str, ...] = ()
    label: str | None = None
    regression: bool | None = None
    streaming: bool = False
    cache_dir: str | None = None
    token: str | None = None
    tagged: bool = False

    def __post_init__(self) -> None:
        named = f"text_column_names={','.join(self.texts)!r}"
        if len(self.texts) > 2:
            raise ValueError(f"{named}: a model reads one or two columns")
        if self.tagged and len(self.texts) > 1:
            raise ValueError(f"{named}: the words are in one column")
        if self.label is not None and self.label in self.texts:
            raise ValueError(f"{named}: {self.label!r} is the label_column_name")


@dataclass(frozen=True)
class KnownTask:
    """A data set that has a row in `tasks.py`: from a folder, or from the Hub."""

    task: Task
    flag: str
    data_dir: str | None
    wanted: Wanted

    def read(self, splits: Collection[str]) -> Read:
        """As `Source.read`."""
        wanted = self.wanted
        if wanted.regression not in (None, self.task.regression):
            kind = "scores" if self.task.regression else "classes"
            raise ValueError(f"do_regression={wanted.regression}: the labels of {self.task.name} are {kind}")
        task = dataclasses.replace(
            self.task,
            text_columns=wanted.texts or self.task.text_columns,
            label_column=wanted.label or self.task.label_column,
        )
        options = (self.data_dir, wanted.cache_dir, wanted.token, self.flag)
        rows = self._stream(task, splits) if wanted.streaming else load_task(task, splits, *options)
        return task, Labels.of_task(task), rows

    def _stream(self, task: Task, splits: Collection[str]) -> DatasetDict:
        wanted, what = self.wanted, f"{self.flag} {task.name!r}"
        if task.train is None or task.carve is not None:
            raise ValueError(f"streaming: the splits of {task.name} are drawn from the whole data set; leave it out")
        others = [split for split in splits if split != task.train]
        if self.data_dir is None:
            if task.hub is None:
                raise ValueError(f"{what} is not on the Hub: give data_dir")
            return stream_hub(*task.hub, task.train, others, what, wanted.token)
        rows = load_task(task, others, self.data_dir, wanted.cache_dir, wanted.token, self.flag)
        rows[task.train] = stream_file("data_dir", Path(self.data_dir) / task.folder / f"{task.train}.parquet")
        return rows


@dataclass(frozen=True)
class HubDataset:
    """Any other data set of the Hub, or a local folder that `datasets` can read."""

    name: str
    config: str | None
    wanted: Wanted

    def read(self, splits: Collection[str]) -> Read:
        """As `Source.read`."""
        wanted, what = self.wanted, f"dataset_name {self.name!r}"
        if wanted.streaming:
            others = [split for split in splits if split != "train"]
            rows = stream_hub(self.name, self.config, "train", others, what, wanted.token)
        else:
            rows = load_dataset(self.name, self.config, wanted.cache_dir, wanted.token)
        return _make_row(rows, splits, wanted, self.name, dict.fromkeys((*splits, "train", *rows), what))


@dataclass(frozen=True)
class Files:
    """Files of one's own.

    Args:
        paths: split -> file.
        reading: how they are read.
        wanted: columns, streaming.
    """

    paths: Mapping[str, str]
    reading: Reading
    wanted: Wanted

    def read(self, splits: Collection[str]) -> Read:
        """As `Source.read`."""
        paths = dict(self.paths)
        streamed = paths.pop("train", None) if self.wanted.streaming else None
        rows = load_files(paths, self.reading)
        if streamed is not None:
            rows["train"] = stream_file("train_file", streamed, self.reading)
        flags = {split: f"{split}_file" for split in (*splits, *rows, "train")}
        return _make_row(rows, splits, self.wanted, "files", flags)


def _make_row(rows: DatasetDict, splits: Collection[str], wanted: Wanted, name: str, flags: Mapping[str, str]) -> Read:
    """A row for data that have none: columns and labels as asked for, or as the training split has them."""
    if "train" not in rows:
        raise ValueError(f"{flags['train']}: a training split is needed, if only to know the labels")
    columns = columns_of(rows["train"], flags["train"])
    label = wanted.label or "label"
    if wanted.tagged and wanted.label is None:
        label = column_of(columns, TAGS, "label_column_name", flags["train"])
    require_columns(columns, (label,), "label_column_name" if wanted.label else flags["train"], "label_column_name")
    if wanted.texts:
        require_columns(columns, wanted.texts, "text_column_names")
        texts = wanted.texts
    elif wanted.tagged:
        texts = (column_of(columns, WORDS, "text_column_names", flags["train"]),)
    else:
        texts = text_columns_of(sample_of(rows["train"], flags["train"]), label)
    if label in texts:
        raise ValueError(f"text_column_names={','.join(texts)!r}: {label!r} holds the labels; give label_column_name")
    if wanted.tagged:
        labels = tag_labels(rows["train"], label, flags["train"])
    else:
        labels = Labels.of_column(rows["train"], label, wanted.regression)
    for split in splits:
        if split not in rows:
            instead = ", or validation_from_train" if split == "validation" else ""
            raise ValueError(f"{flags[split]}: the split {split!r} is needed{instead}; there are {', '.join(rows)}")
        needed = texts if split == "test" else (*texts, label)
        require_columns(columns_of(rows[split], flags[split]), needed, f"{flags[split]}, split {split}")
    labelled = "test" in splits and (
        has_tags(rows["test"], label, flags["test"])
        if wanted.tagged
        else has_labels(rows["test"], label, labels, flags["test"])
    )
    metric = "span_f1" if wanted.tagged else "mse" if labels.regression else "accuracy"
    task = Task(
        name=name,
        text_columns=texts,
        labels=labels.names,
        metrics=(metric,),
        hub=None,
        folder="",
        label_column=label,
        test=(HeldOut("test", labelled=labelled),),
        tagged=wanted.tagged,
    )
    return task, labels, rows


def has_labels(rows: Dataset, column: str, labels: Labels, what: str) -> bool:
    """Whether a test split has labels: it has none if the column is not there, or holds nothing or -1 in every row.

    Raises:
        ValueError: some rows have labels and some have none.
    """
    if column not in rows.column_names:
        return False
    without = [_is_none(value, labels.values) for value in stored_labels(rows, column)]
    if any(without) and not all(without):
        raise ValueError(
            f"{what}: row {without.index(True)} has no label in {column!r}, row {without.index(False)} has one; fill "
            "it in, or leave the whole column out for predictions only"
        )
    return not any(without)


def _is_none(value: Any, labels: Iterable[Any]) -> bool:
    return is_missing(value) or (value == -1 and -1 not in labels)
