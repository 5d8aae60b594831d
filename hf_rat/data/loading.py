"""Raw data sets from a folder of parquet files, from the Hub or from files of one's own, with errors of one line."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Mapping
from pathlib import Path
from typing import Any

import datasets
from datasets import Dataset, DatasetDict
from huggingface_hub import constants

from hf_rat.data.files import one_line, read_file
from hf_rat.data.hub import require_hub
from hf_rat.data.label_columns import named_classes
from hf_rat.data.reading import Reading
from hf_rat.data.task import Task


def load_task(
    task: Task,
    splits: Iterable[str],
    data_dir: str | None = None,
    cache_dir: str | None = None,
    token: str | None = None,
    flag: str = "task_name",
) -> DatasetDict:
    """The asked splits of a data set that has a row in `tasks.py`.

    Args:
        task: the row.
        splits: names of the splits that are needed; no other is read.
        data_dir: folder that holds `task.folder/<split>.parquet`; None takes the Hub.
        cache_dir: where `datasets` keeps its copies; None is its own default.
        token: for data sets on the Hub that ask for one.
        flag: what the user named it by, for errors.

    Raises:
        ValueError: a file is missing or does not parse, the Hub does not answer, or a column is missing.
    """
    what, wanted, splits = f"{flag} {task.name!r}", list(splits), list(splits)
    if task.carve is not None:
        made = {*(split for split, _ in task.carve.shares), task.train}
        splits = [split for split in splits if split not in made]
        splits += task.carve.pool if len(splits) < len(wanted) else ()
    if data_dir is None:
        if task.hub is None:
            raise ValueError(
                f"{what} is not on the Hub, or as a loading script only: give data_dir DIR with "
                f"DIR/{task.folder}/<split>.parquet, or train_file"
            )
        loaded = _from_hub(
            *task.hub,
            what=what,
            instead=f"give data_dir DIR (or HF_RAT_DATA) with DIR/{task.folder}/<split>.parquet",
            cache_dir=cache_dir,
            token=token,
        )
        absent = [split for split in splits if split not in loaded]
        if absent:
            raise ValueError(f"{what}: the Hub's copy has no split {', '.join(absent)}")
        data = DatasetDict({split: loaded[split] for split in splits})
    else:
        folder, reading = Path(data_dir) / task.folder, Reading(cache_dir=cache_dir)
        for split in splits:
            if not (folder / f"{split}.parquet").is_file():
                raise ValueError(
                    f"data_dir {data_dir!r}: task {task.name!r} needs {folder / split}.parquet, which is not there"
                )
        data = DatasetDict({split: read_file("data_dir", folder / f"{split}.parquet", reading) for split in splits})
    for split, rows in data.items():
        label = (task.label_column,) if task.label_column else ()
        require_columns(rows.column_names, (*task.text_columns, *label), f"{what}, split {split}")
    if task.carve is None:
        return data
    return DatasetDict({split: rows for split, rows in carve_splits(data, task).items() if split in wanted})


def carve_splits(data: DatasetDict, task: Task) -> DatasetDict:
    """The data set with the splits that `task.carve` draws from its pool."""
    assert task.carve is not None
    assert task.train is not None
    if not all(split in data for split in task.carve.pool):
        return data
    pool = datasets.concatenate_datasets([data[split] for split in task.carve.pool]).shuffle(seed=0)
    made, begin = {}, 0
    for split, share in task.carve.shares:
        end = begin + round(share * len(pool))
        made[split] = pool.select(range(begin, end))
        begin = end
    return DatasetDict({**data, task.train: pool.select(range(begin, len(pool))), **made})


def load_dataset(
    name: str, config: str | None, cache_dir: str | None = None, token: str | None = None, revision: str | None = None
) -> DatasetDict:
    """Every split of any data set: a name on the Hub, or a local folder that `datasets` can read.

    Raises:
        ValueError: the Hub does not answer, or `datasets` cannot load it.
    """
    what = f"dataset_name {name!r}"
    instead = "give train_file, validation_file and test_file"
    return _from_hub(name, config, what, instead, cache_dir=cache_dir, token=token, revision=revision)


def _from_hub(name: str, config: str | None, what: str, instead: str, **options: Any) -> DatasetDict:
    if not Path(name).is_dir():
        require_hub(what, instead)
    try:
        return datasets.load_dataset(name, config, **options)
    except Exception as error:  # the network, the hub's client and the readers each have their own
        if "Dataset scripts are no longer supported" in str(error):
            raise ValueError(f"{what} is a loading script on the Hub, which is not run: {instead}") from error
        offline = f"; HF_HUB_OFFLINE is set: unset it, or {instead}" if constants.HF_HUB_OFFLINE else ""
        raise ValueError(f"{what} could not be loaded ({one_line(error)}){offline}") from error


def load_files(files: Mapping[str, str], reading: Reading | None = None) -> DatasetDict:
    """Data of one's own.

    Args:
        files: path of the file of each split; the splits are "train", "validation" and "test", as in the flags.
        reading: encoding, quotes, cache; None is the defaults.

    Raises:
        ValueError: a file is missing or does not parse.
    """
    return DatasetDict({split: read_file(f"--{split}_file", path, reading) for split, path in files.items()})


def hold_back(rows: DatasetDict, train: str, validation: Iterable[str], share: float) -> DatasetDict:
    """The same data with the validation splits replaced by a share of the training split, which loses those rows.

    Args:
        rows: the splits; `train` is one of them.
        train: name of the training split.
        validation: names of the splits that the held-back rows stand in for.
        share: of the training rows, between 0 and 1; the rows are drawn by a fixed seed, whatever the run's is.

    Raises:
        ValueError: no row would be left to train on.
    """
    count = len(rows[train])
    if math.ceil(share * count) >= count:
        raise ValueError(
            f"validation_from_train {share} of {count} training row{'s' * (count != 1)} leaves none to train on: "
            "take a smaller share or more rows"
        )
    parts = rows[train].train_test_split(test_size=share, seed=0)
    return DatasetDict({**rows, train: parts["train"], **dict.fromkeys(validation, parts["test"])})


def subsample(rows: DatasetDict, split: str, size: int, flag: str) -> DatasetDict:
    """The same data with `size` rows of a split, drawn by a fixed seed, whatever the run's is.

    Raises:
        ValueError: there are fewer; the message begins with the flag.
    """
    if size > len(rows[split]):
        raise ValueError(f"{flag} {size}: the split {split!r} has {len(rows[split])} rows")
    return DatasetDict({**rows, split: rows[split].shuffle(seed=0).select(range(size))})


def require_same_labels(rows: DatasetDict, column: str) -> None:
    """Check that the splits name the same labels in the same order.

    Raises:
        ValueError: two of them differ.
    """
    found = {split: named_classes((part.features or {}).get(column)) for split, part in rows.items()}
    names = {split: classes.names for split, classes in found.items() if classes is not None}
    for split, own in names.items():
        first = next(iter(names))
        if own != names[first]:
            raise ValueError(f"the labels of the split {split!r}, {own}, are not those of {first!r}, {names[first]}")


def require_columns(found: Collection[str], columns: Iterable[str], what: str, flag: str | None = None) -> None:
    """Check that the columns are there.

    Args:
        found: the columns of a split.
        columns: names that it must have.
        what: what asks for them, for the error.
        flag: what names another column.

    Raises:
        ValueError: a column is not there.
    """
    for column in columns:
        if column not in found:
            names = ", ".join(name if len(name) <= 40 else f"{name[:40]}..." for name in found)
            other = "" if flag is None else f"; {flag} names it"
            raise ValueError(f"{what}: there is no column {column!r}; the columns are {names}{other}")


def require_rows(rows: Dataset, what: str) -> None:
    """Check that a split has rows.

    Raises:
        ValueError: it is empty.
    """
    if len(rows) == 0:
        raise ValueError(f"{what}: the split is empty, it must have at least one row")
