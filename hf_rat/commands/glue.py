"""`run_glue.py` and `hf-rat glue`: fine-tune on a GLUE task, a data set of the Hub or files, with any regularizer."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path

from datasets import Dataset, DatasetDict
from transformers import set_seed

from hf_rat.commands.embedded import DEFAULTS, run_embedded
from hf_rat.commands.finetune import Asked, Job, encode, prepare_folder, run_job, say, summarize
from hf_rat.commands.flags import Flags, given_flags, read_flags, reported
from hf_rat.commands.models import add_lora, load_model
from hf_rat.commands.paper import apply_paper
from hf_rat.data.encoding import Labels, text_columns_of
from hf_rat.data.loading import hold_back, load_dataset, load_files, load_task, require_columns
from hf_rat.data.tasks import HeldOut, Task, Validation, find

PROGRAM = "hf-rat glue"


def main(argv: Sequence[str] | None = None) -> int:
    """The command; its exit status, 2 after an error of the user's."""
    return reported(run, argv)


def run(argv: Sequence[str]) -> dict[str, float]:
    """Do what the flags say; the scores and speeds, as in all_results.json.

    Raises:
        ValueError: bad input, in one line that names the flag.
    """
    given = given_flags(argv, PROGRAM)
    source = ("task_name", "dataset_name", "train_file", "validation_file", "test_file")
    if not any(given.get(name) for name in ("model_name_or_path", *source)):
        return run_embedded(read_flags(given, DEFAULTS), "glue")
    flags = read_flags(given)
    data, training = flags.data, flags.training
    if not any(given.get(name) for name in source):
        raise ValueError("--model_name_or_path without data: give --task_name, --dataset_name or --train_file")
    if flags.model.model_name_or_path is None:
        raise ValueError("--model_name_or_path is missing: give a model on the Hub or a local folder")
    if not (training.do_train or training.do_eval or training.do_predict):
        raise ValueError("nothing to do: give --do_train, --do_eval or --do_predict")
    _check_submission(flags)
    task = find(data.task_name) if data.task_name is not None else None
    if data.recipe is not None:
        say(apply_paper(flags, task))
    training.regularizer()  # a wrong expression is said before anything is loaded
    resume = prepare_folder(flags, "glue")
    set_seed(training.seed)
    task, labels, rows = _load(flags, task)
    if flags.data.validation_from_train is not None:
        if not training.do_train or task.train is None:
            raise ValueError("--validation_from_train holds back training examples: it needs --do_train")
        names = [part.split for part in task.evaluation]
        rows = hold_back(rows, task.train, names, flags.data.validation_from_train)
    job = _prepare(flags, task, labels, rows)
    results = run_job(flags, job, resume)
    summarize(flags, job, results)
    return results


def _check_submission(flags: Flags) -> None:
    if flags.data.submission_dir is None:
        return
    for name, wrong in (
        ("do_predict", not flags.training.do_predict),
        ("task_name", flags.data.task_name is None),
    ):
        if wrong:
            raise ValueError(f"--submission_dir {flags.data.submission_dir!r} needs --{name}")
    if flags.data.max_predict_samples is not None:
        raise ValueError("--submission_dir needs the whole test split: leave --max_predict_samples out")


def _splits(flags: Flags, task: Task) -> list[str]:
    """The splits that the run needs, checked against those that the task has."""
    training = flags.training
    validation = training.do_eval or training.eval_strategy != "no"
    if training.do_train and task.train is None:
        raise ValueError(f"--task_name {task.name!r} has no training split; it is answered by another task's model")
    if validation and not task.evaluation:
        raise ValueError(f"--task_name {task.name!r} has no validation split: leave out --do_eval")
    splits = [task.train] if training.do_train and task.train is not None else []
    splits += [part.split for part in task.evaluation] if validation else []
    return splits + ([part.split for part in task.test] if training.do_predict else [])


def _load(flags: Flags, task: Task | None) -> tuple[Task, Labels, DatasetDict]:
    """The row of the data set, its labels, and the splits that are needed."""
    data = flags.data
    cache_dir, token = flags.model.cache_dir, flags.model.token
    columns = tuple(name.strip() for name in data.text_column_names.split(",")) if data.text_column_names else ()
    if len(columns) > 2:
        raise ValueError(f"--text_column_names {data.text_column_names!r}: a model reads one or two columns")
    if task is not None:
        task = dataclasses.replace(
            task,
            text_columns=columns or task.text_columns,
            label_column=data.label_column_name or task.label_column,
        )
        rows = load_task(task, _splits(flags, task), data.data_dir, cache_dir, token)
        return task, Labels.of_task(task), rows
    if data.dataset_name is not None:
        rows = load_dataset(data.dataset_name, data.dataset_config_name, cache_dir, token)
        what = f"--dataset_name {data.dataset_name!r}"
    else:
        rows = load_files(data.files, cache_dir)
        what = "--train_file"
    if "train" not in rows:
        raise ValueError(f"{what}: a training split is needed, if only to know the labels")
    label_column = data.label_column_name or "label"
    require_columns(rows["train"], (label_column,), "--label_column_name" if data.label_column_name else what)
    labels = Labels.of_column(rows["train"], label_column)
    task = Task(
        name=data.dataset_name or "files",
        text_columns=columns or text_columns_of(rows["train"], label_column),
        labels=labels.names,
        metrics=("mse",) if labels.regression else ("accuracy",),
        hub=("", None),
        folder="",
        label_column=label_column,
        evaluation=(Validation("validation"),),
        test=(HeldOut("test"),),
    )
    for split in _splits(flags, task):
        if split not in rows:
            flag = f"--{split}_file" if data.dataset_name is None else what
            raise ValueError(f"{flag}: the split {split!r} is needed; there are {', '.join(rows)}")
        wanted = task.text_columns if split == "test" else (*task.text_columns, label_column)
        flag = "--text_column_names" if columns else what
        require_columns(rows[split], wanted, f"{flag}, split {split}")
    return task, labels, rows


def _prepare(flags: Flags, task: Task, labels: Labels, rows: DatasetDict) -> Job:
    """Model, tokenizer and encoded splits."""
    data, training = flags.data, flags.training
    model, tokenizer, labels = load_model(flags.model, labels, data.task_name)
    if flags.model.lora_r is not None:
        model = add_lora(model, flags.model)

    def encoded(split: str, labelled: bool, limit: int | None, of: Task = task, within: DatasetDict = rows) -> Dataset:
        what = f"task {of.name!r}, split {split}"
        return encode(flags, within[split], of, labels if labelled else None, tokenizer, limit, what)

    card = {"tasks": "text-classification", "finetuned_from": flags.model.model_name_or_path}
    if data.task_name is not None:
        card |= {"dataset": f"GLUE {task.name.upper()}", "dataset_tags": "glue", "dataset_args": task.name}
        card["language"] = "en"
    elif data.dataset_name is not None:
        card["dataset"] = data.dataset_name
    job = Job(task, labels, model, tokenizer, named=data.task_name is not None, card=card)
    if training.do_train and task.train is not None:
        job.train = encoded(task.train, True, data.max_train_samples)
    if training.do_eval or training.eval_strategy != "no":
        job.evaluation = {part.suffix: encoded(part.split, True, data.max_eval_samples) for part in task.evaluation}
    if training.do_predict:
        limit = data.max_predict_samples
        job.prediction = [Asked(task, part, encoded(part.split, False, limit)) for part in task.test]
        also = _also_predicted(flags, task)
        if also is not None:
            other, found = also
            job.prediction += [
                Asked(other, part, encoded(part.split, False, limit, other, found)) for part in other.test
            ]
    return job


def _also_predicted(flags: Flags, task: Task) -> tuple[Task, DatasetDict] | None:
    """The test-only task that this model answers too, when its data is at hand."""
    if task.also_predicts is None:
        return None
    other, folder = find(task.also_predicts), flags.data.data_dir
    splits = [part.split for part in other.test]
    if folder is not None:
        absent = [split for split in splits if not (Path(folder) / other.folder / f"{split}.parquet").is_file()]
        if absent:
            say(f"--data_dir {folder!r} has no {other.folder}/{absent[0]}.parquet: {other.name} is not predicted.")
            return None
    return other, load_task(other, splits, folder, flags.model.cache_dir, flags.model.token)
