"""The text that a language model is trained on: which lines of which split, and what a token of it is."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

from datasets import Dataset

from hf_rat.data.encoding import require_texts
from hf_rat.data.loading import load_dataset, load_task, require_columns, require_rows
from hf_rat.data.task import HeldOut, Task
from hf_rat.data.tasks import LANGUAGE
from hf_rat.data.text_columns import text_columns_of
from hf_rat.data.text_stream import read_text
from hf_rat.finetuning.flags import Flags
from hf_rat.finetuning.language_model_flags import LanguageModelArguments

CHARACTERS = ("bits_per_character", "perplexity")
"""Scores where a token is a character."""

_FLAGS = {"train": "--train_file", "validation": "--validation_file", "test": "--test_file"}


class Texts(NamedTuple):
    """What was read.

    Args:
        task: the row of the data set, or one that was made for the occasion; `metrics` are the scores.
        tokens: "words" or "characters", as the tokenizer takes them apart.
        lines: split -> its lines.
    """

    task: Task
    tokens: str
    lines: Mapping[str, list[str]]


def read_texts(flags: Flags, lm: LanguageModelArguments) -> Texts:
    """The lines of the splits that the flags need.

    Args:
        flags: which data, and what is done with them.
        lm: what a token is.

    Raises:
        ValueError: a split, file or column is missing, or a split is empty.
    """
    data, training = flags.data, flags.training
    validation = training.do_eval or training.eval_strategy != "no"
    needed = {"train": training.do_train, "validation": validation, "test": training.do_predict}
    splits = [split for split, need in needed.items() if need]
    if data.validation_from_train is not None and not (training.do_train and validation):
        raise ValueError(
            "--validation_from_train holds back training lines to score on: give --do_train and --do_eval"
        )
    read = [split for split in splits if split != "validation" or data.validation_from_train is None]
    task, rows = _rows(flags, read)
    lines = {split: _lines(flags, task, part, split) for split, part in rows.items()}
    if data.validation_from_train is not None:
        lines |= _held_back(lines["train"], data.validation_from_train)
    limits = {
        "train": data.max_train_samples,
        "validation": data.max_eval_samples,
        "test": data.max_predict_samples,
    }
    lines = {split: part[: limits[split]] for split, part in lines.items()}
    if lm.tokens is not None and task.script == "spaced" and lm.tokens == "characters":
        raise ValueError(f"--tokens characters: the tokens of {task.name} stand between spaces, leave it out")
    tokens = lm.tokens or "words"
    if not task.metrics:
        task = dataclasses.replace(task, metrics=CHARACTERS if tokens == "characters" else CHARACTERS[1:])
    return Texts(task, tokens, lines)


def _rows(flags: Flags, splits: list[str]) -> tuple[Task, dict[str, Dataset]]:
    """The row of the data set, and the splits as they are stored."""
    data, model = flags.data, flags.model
    if data.dataset_name is None:
        made = _made("files", "")
        for split in splits:
            if split not in data.files:
                raise ValueError(f"{_FLAGS[split]} is missing: this run needs the split {split!r}")
        reading = data.reading(model.cache_dir)
        return made, {split: read_text(_FLAGS[split], data.files[split], reading) for split in splits}
    known = {task.name: task for task in LANGUAGE}.get(data.dataset_name.lower())
    if known is None and data.data_dir is not None and (Path(data.data_dir) / data.dataset_name).is_dir():
        known = _made(data.dataset_name, data.dataset_name)
    if known is not None:
        return known, dict(load_task(known, splits, data.data_dir, model.cache_dir, model.token, "dataset_name"))
    what = f"--dataset_name {data.dataset_name!r}"
    try:
        rows = load_dataset(data.dataset_name, data.dataset_config_name, model.cache_dir, model.token)
    except ValueError as error:
        names = ", ".join(task.name for task in LANGUAGE)
        raise ValueError(
            f"{error} (or --data_dir DIR with DIR/{data.dataset_name}; known by name: {names})"
        ) from error
    for split in splits:
        if split not in rows:
            raise ValueError(f"{what} has no split {split!r}; there are {', '.join(rows)}")
    return _made(data.dataset_name, ""), {split: rows[split] for split in splits}


def _made(name: str, folder: str) -> Task:
    """A row for a text that has none; its column and its scores are found later."""
    return Task(
        name, (), (), (), None, folder, label_column="", test=(HeldOut("test", labelled=True),), script="latin"
    )


def _lines(flags: Flags, task: Task, rows: Dataset, split: str) -> list[str]:
    what = (
        f"{_FLAGS[split]} {flags.data.files[split]!r}" if split in flags.data.files else f"{task.name}, split {split}"
    )
    require_rows(rows, what)
    columns = flags.data.names("text_column_names") or task.text_columns or text_columns_of(rows, "label")
    if len(columns) != 1:
        raise ValueError(f"--text_column_names {','.join(columns)!r}: a text to be modelled is one column")
    require_columns(rows.column_names, columns, what, "--text_column_names")
    require_texts(rows, columns, what)
    lines: list[str] = list(rows[columns[0]])
    if not any(line.strip() for line in lines):
        raise ValueError(f"{what}: there is no word in its {len(lines)} lines")
    return lines


def _held_back(lines: list[str], share: float) -> dict[str, list[str]]:
    """The last lines in the place of the validation split: a text is read in its order."""
    kept = len(lines) - max(1, round(share * len(lines)))
    if kept < 1:
        raise ValueError(f"--validation_from_train {share} of {len(lines)} training lines leaves none to train on")
    return {"train": lines[:kept], "validation": lines[kept:]}
