"""What the classification scripts share between their flags and the run: rows and labels, then model and encodings."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from datasets import Dataset, DatasetDict, IterableDataset
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from hf_rat.data.description import describe
from hf_rat.data.encoding import Labels, tokenize
from hf_rat.data.files import read_file
from hf_rat.data.loading import hold_back, require_columns, require_rows, require_same_labels, subsample
from hf_rat.data.sources import Files, HubDataset, KnownTask, Source, Wanted
from hf_rat.data.streaming import encode_stream
from hf_rat.data.task import HeldOut, Task, Validation
from hf_rat.engine.layers import reinit_layers
from hf_rat.finetuning.flag_names import in_flags
from hf_rat.finetuning.flags import DataTrainingArguments, Flags
from hf_rat.finetuning.job import Job, TestSplit
from hf_rat.finetuning.pretrained import add_lora
from hf_rat.finetuning.processes import say
from hf_rat.finetuning.tagging import encode_tagged

SOURCES = ("task_name", "dataset_name", "train_file", "validation_file", "test_file")
UNLABELED = "unlabeled"
_NO_UNLABELED = "there is no split without labels; give --unlabeled_file"
# What data without a row of their own are taken to have.
_UNKNOWN = Task("", (), (), (), None, "", evaluation=(Validation("validation"),), test=(HeldOut("test"),))
Build = Callable[[Task, Labels, DatasetDict], tuple[PreTrainedModel, PreTrainedTokenizerBase, Labels]]
"""(row of the data set, its labels, the raw splits) -> model, tokenizer, and the labels as the model numbers them."""


def require_work(flags: Flags, given: Mapping[str, Any], model: bool) -> None:
    """Refuse a run that has no data or several, no model or nothing to do.

    Args:
        flags: of the run.
        given: the flags that are set.
        model: whether a model is named.

    Raises:
        ValueError: what is missing, or one too many.
    """
    named = [f"--{name} {given[name]!r}" for name in SOURCES if given.get(name)]
    if len(named) > 1 and (given.get("task_name") or given.get("dataset_name")):
        raise ValueError(f"{named[0]} and {named[1]} name two data sets: keep one of them")
    if not named:
        raise ValueError("--model_name_or_path without data: give --task_name, --dataset_name or --train_file")
    if not model:
        raise ValueError("--model_name_or_path is missing: give a model on the Hub or a local folder")
    training = flags.training
    if not (training.do_train or training.do_eval or training.do_predict):
        raise ValueError("nothing to do: give --do_train, --do_eval or --do_predict")
    if flags.data.mc_samples is not None and not training.do_predict:
        raise ValueError(f"--mc_samples {flags.data.mc_samples} is about predictions: it needs --do_predict")
    if flags.data.streaming and (training.max_steps < 1 or not training.do_train):
        raise ValueError("--streaming needs --do_train and --max_steps: the length of a stream is not known")


def split_names(flags: Flags, task: Task) -> list[str]:
    """The splits that the run needs, checked against those that the task has."""
    training = flags.training
    what = f"{flags.data.source_flag} {task.name!r}"
    validation = training.do_eval or training.eval_strategy != "no"
    if training.do_train and task.train is None:
        raise ValueError(f"{what} has no training split; it is answered by another task's model")
    if validation and not task.evaluation:
        raise ValueError(f"{what} has no validation split: leave out --do_eval")
    splits = [task.train] if training.do_train and task.train is not None else []
    splits += [part.split for part in task.evaluation] if validation else []
    return splits + ([part.split for part in task.test] if training.do_predict else [])


def load(
    flags: Flags, task: Task | None, unlabeled: bool = False, tagged: bool = False
) -> tuple[Task, Labels, DatasetDict]:
    """The row of the data set, its labels, and the splits that are needed, with a few lines that say what was read.

    Args:
        flags: which data.
        task: its row, or None for data that have none: a row is made for the occasion.
        unlabeled: whether the split without labels is needed too, if there is one.
        tagged: whether each word of data that have no row has a label of its own.

    Raises:
        ValueError: a split or column is missing, or the labels of two splits differ.
    """
    data = flags.data
    # Training rows are held back in place of a validation split that need not be there.
    held = data.validation_from_train is not None and (
        task is None or (not task.evaluation and task.train is not None)
    )
    if task is not None and held:
        task = dataclasses.replace(task, evaluation=_UNKNOWN.evaluation)
    splits = split_names(flags, task or _UNKNOWN)
    if task is not None and unlabeled and data.unlabeled_file is None and task.unlabeled is not None:
        splits.append(task.unlabeled)
    if held:
        splits = [split for split in splits if split != "validation"]
    task, labels, rows = source_of(flags, task, tagged).read(splits)
    if data.unlabeled_file is not None:
        reading = data.reading(flags.model.cache_dir, task.tagged)
        rows[UNLABELED] = read_file("--unlabeled_file", data.unlabeled_file, reading)
        require_columns(rows[UNLABELED].column_names, task.text_columns, "--unlabeled_file")
        task = dataclasses.replace(task, unlabeled=UNLABELED)
    rows = _hold_back(flags, task, rows)
    for line in describe(task, labels, rows, data.files):
        say(in_flags(line))
    return task, labels, rows


def source_of(flags: Flags, task: Task | None, tagged: bool) -> Source:
    """Where the flags say that the rows come from; `tagged` is of data that have no row."""
    data, model = flags.data, flags.model
    wanted = Wanted(
        data.names("text_column_names"),
        data.label_column_name,
        data.do_regression,
        data.streaming,
        model.cache_dir,
        model.token,
        tagged,
    )
    if task is not None:
        return KnownTask(task, data.source_flag, data.data_dir, wanted)
    if data.dataset_name is not None:
        return HubDataset(data.dataset_name, data.dataset_config_name, wanted)
    return Files(data.files, data.reading(model.cache_dir, tagged), wanted)


def _hold_back(flags: Flags, task: Task, rows: DatasetDict) -> DatasetDict:
    """The same with --validation_from_train, --train_size and --unlabeled_size carried out."""
    data = flags.data
    require_same_labels(rows, task.label_column)
    if data.validation_from_train is not None:
        if not flags.training.do_train or task.train is None:
            raise ValueError("--validation_from_train holds back training examples: it needs --do_train")
        if not flags.training.do_eval and flags.training.eval_strategy == "no":
            raise ValueError("--validation_from_train holds back examples that nothing is scored on: add --do_eval")
        names = [part.split for part in task.evaluation]
        rows = hold_back(rows, task.train, names, data.validation_from_train)
    if data.train_size is not None and task.train is not None and task.train in rows:
        rows = subsample(rows, task.train, data.train_size, "--train_size")
    if data.unlabeled_size is not None:
        if task.unlabeled is None:
            raise ValueError(f"--unlabeled_size {data.unlabeled_size}: {_NO_UNLABELED}")
        rows = subsample(rows, task.unlabeled, data.unlabeled_size, "--unlabeled_size")
    return rows


def data_names(flags: Flags) -> dict[str, Any]:
    """What the model card calls the data: the data set's name, or those of the files."""
    if flags.data.dataset_name is not None:
        return {"dataset": flags.data.dataset_name, "dataset_tags": flags.data.dataset_name}
    files = {split: path for split, path in flags.data.files.items() if split != "test"}
    return {"dataset": ", ".join(f"{Path(path).name} ({split})" for split, path in files.items())}


def prepare(
    flags: Flags,
    task: Task,
    labels: Labels,
    rows: DatasetDict,
    build: Build,
    card: Mapping[str, Any],
    named: bool,
    unlabeled: bool = False,
) -> Job:
    """Model, tokenizer and encoded splits.

    Args:
        flags: lengths, limits, LoRA.
        task: the row of the data set.
        labels: as the data set stores them.
        rows: the splits that are needed.
        build: makes the model.
        card: what the model card says of model and data.
        named: whether `task` has a name that outputs should carry.
        unlabeled: whether the split without labels is trained on too.
    """
    data, training = flags.data, flags.training
    model, tokenizer, labels = build(task, labels, rows)
    if flags.model.reinit_layers is not None:
        if not training.do_train:
            raise ValueError(f"--reinit_layers {flags.model.reinit_layers} needs --do_train: new layers know nothing")
        reinit_layers(model, flags.model.reinit_layers)
    if flags.model.lora_r is not None:
        model = add_lora(model, flags.model, task)
    job = Job(task, labels, model, tokenizer, named=named, card={"tasks": task.pipeline, **card})
    if training.do_train and task.train is not None:
        if data.streaming:
            job.train = encode_training_stream(flags, job, task, rows[task.train])
        else:
            job.train = encoded(flags, job, task, rows, task.train, data.max_train_samples)
        if unlabeled:
            if task.unlabeled is None:
                raise ValueError(f"--semi_supervised: {_NO_UNLABELED}")
            job.unlabeled = encoded(flags, job, task, rows, task.unlabeled, None, labelled=False)
            if task.tagged:
                job.unlabeled = job.unlabeled.remove_columns("labels")
    if training.do_eval or training.eval_strategy != "no":
        job.evaluation = {
            part.suffix: encoded(flags, job, task, rows, part.split, data.max_eval_samples) for part in task.evaluation
        }
    if training.do_predict:
        job.prediction = test_splits(flags, job, task, rows)
    return job


def test_splits(flags: Flags, job: Job, task: Task, rows: DatasetDict) -> list[TestSplit]:
    """The test splits of a task, encoded for the model of the job."""
    limit = flags.data.max_predict_samples
    return [
        TestSplit(task, part, encoded(flags, job, task, rows, part.split, limit, labelled=part.labelled))
        for part in task.test
    ]


def _what(flags: Flags, task: Task, split: str) -> str:
    """What the user named a split by, for errors."""
    return f"--{split}_file" if split in flags.data.files else f"task {task.name!r}, split {split}"


def encode_training_stream(flags: Flags, job: Job, task: Task, rows: Any) -> IterableDataset:
    """The training stream as the model is fed it."""
    data, training = flags.data, flags.training
    config: Any = training.accelerator_config
    if config.dispatch_batches is None:
        # Each process reads the stream and pads what is its own; batches read for all would need one length.
        config.dispatch_batches = False
    length = min(data.max_seq_length, job.tokenizer.model_max_length)
    seed = training.seed if training.data_seed is None else training.data_seed
    what = _what(flags, task, str(task.train))
    return encode_stream(rows, task, job.labels, job.tokenizer, length, data.pad_to_max_length, seed, what)


def encoded(
    flags: Flags, job: Job, task: Task, rows: DatasetDict, split: str, limit: int | None, labelled: bool = True
) -> Dataset:
    """One split as the model is fed it; its first `limit` rows."""
    what = _what(flags, task, split)
    labels = job.labels if labelled else None
    if task.tagged:
        return encode_tagged(flags, job, rows[split], labels, limit, what, whole=split != task.train)
    return encode(flags, rows[split], task, labels, job.tokenizer, limit, what)


def encode(
    flags: Flags,
    rows: Dataset,
    task: Task,
    labels: Labels | None,
    tokenizer: PreTrainedTokenizerBase,
    limit: int | None,
    what: str,
) -> Dataset:
    """One split as the model is fed it.

    Args:
        flags: lengths, padding and caching.
        rows: the split as loaded.
        task: names its columns.
        labels: how labels are numbered; None drops the label column, as prediction does.
        tokenizer: of the model.
        limit: the first rows to keep; None keeps all.
        what: flag and split, for errors.

    Raises:
        ValueError: the split is empty, or a row has no text or a label outside the label set.
    """
    data: DataTrainingArguments = flags.data
    texts = task.text_columns
    require_rows(rows, what)
    if limit is not None:
        rows = rows.select(range(min(limit, len(rows))))
    if "label" in texts and task.label_column != "label":  # the name that the numbers of the labels get
        rows, texts = (
            rows.rename_column("label", "label (text)"),
            tuple("label (text)" if name == "label" else name for name in texts),
        )
    if labels is not None:
        rows = labels.encode(rows, task.label_column, what)
    elif task.label_column in rows.column_names:
        rows = rows.remove_columns(task.label_column)
    length = min(data.max_seq_length, tokenizer.model_max_length)
    with flags.training.main_process_first(desc="tokenizing"):
        rows = tokenize(rows, tokenizer, texts, length, data.pad_to_max_length, data.overwrite_cache, what)
    keep = {*tokenizer.model_input_names, "label"}
    return rows.remove_columns([column for column in rows.column_names if column not in keep])
