"""A training split that is read as it is needed: nothing of it is kept, neither in memory nor on disk."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import datasets
from datasets import Dataset, DatasetDict, IterableDataset
from transformers import PreTrainedTokenizerBase

from hf_rat.data.encoding import Labels, texts_of
from hf_rat.data.files import one_line
from hf_rat.data.hub import require_hub
from hf_rat.data.task import Task

SHUFFLED = 10_000
"""Examples among which the next one is drawn."""


def stream_hub(
    name: str, config: str | None, train: str, others: list[str], what: str, token: str | None = None
) -> DatasetDict:
    """A data set of the Hub, or a folder: its training split as a stream, the other asked splits in memory.

    Raises:
        ValueError: the Hub does not answer, `datasets` cannot read it, or a split is not there.
    """
    if not Path(name).is_dir():
        require_hub(what, "give train_file, validation_file and test_file")
    try:
        streams = datasets.load_dataset(name, config, streaming=True, token=token)
        absent = [split for split in (train, *others) if split not in streams]
        kept = {split: Dataset.from_list(list(streams[split])) for split in others if split in streams}
    except Exception as error:  # the network, the hub's client and the readers each have their own
        raise ValueError(f"{what} could not be streamed ({one_line(error)})") from error
    if absent:
        raise ValueError(f"{what}: there is no split {', '.join(absent)}; there are {', '.join(streams)}")
    return DatasetDict({train: streams[train], **kept})


def first_row(rows: IterableDataset, what: str) -> dict[str, Any]:
    """The first example.

    Raises:
        ValueError: there is none, or it does not parse.
    """
    try:
        row = next(iter(rows), None)
    except Exception as error:  # what a reader finds out late
        raise ValueError(f"{what} does not parse ({one_line(error)})") from error
    if row is None:
        raise ValueError(f"{what}: the split is empty, it must have at least one row")
    return row


def columns_of(rows: Dataset | IterableDataset, what: str) -> list[str]:
    """The columns of a split, of a stream those of its first example."""
    return sample_of(rows, what).column_names


def sample_of(rows: Dataset | IterableDataset, what: str) -> Dataset:
    """The split itself, of a stream its first example: for a look at the columns."""
    return Dataset.from_list([first_row(rows, what)]) if isinstance(rows, IterableDataset) else rows


def encode_stream(
    rows: IterableDataset,
    task: Task,
    labels: Labels,
    tokenizer: PreTrainedTokenizerBase,
    max_length: int,
    pad: bool,
    seed: int,
    what: str,
) -> IterableDataset:
    """The stream as the model is fed it, shuffled within a buffer.

    Args:
        rows: as read.
        task: names its columns.
        labels: how labels are numbered.
        tokenizer: of the model.
        max_length: tokens at most.
        pad: whether every row is padded to `max_length`.
        seed: of the order.
        what: flag and split, for errors.

    Raises:
        ValueError: (while it is read) a row has no text or a label outside the label set.
    """

    def encode(batch: Mapping[str, list[Any]], indices: list[int]) -> Mapping[str, list[Any]]:
        texts = texts_of(batch, task.text_columns, indices[0], what)
        padding = "max_length" if pad else False
        encoded = tokenizer(*texts, padding=padding, max_length=max_length, truncation=True)
        stored = zip(batch[task.label_column], indices, strict=True)
        return {**encoded, "label": [labels.number(value, index, what) for value, index in stored]}

    columns = list(first_row(rows, what))
    encoded = rows.map(encode, batched=True, with_indices=True, remove_columns=columns)
    return encoded.shuffle(seed=seed, buffer_size=SHUFFLED)
