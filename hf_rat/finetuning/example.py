"""The embedded default: no data and no model were named, so generated rows train a small model, twice."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import torch
from datasets import DatasetDict
from transformers import set_seed

from hf_rat.data.encoding import Labels
from hf_rat.data.tasks import Task
from hf_rat.engine.regularization import Regularization
from hf_rat.finetuning.flags import Flags
from hf_rat.finetuning.folder import prepare_folder
from hf_rat.finetuning.job import Job
from hf_rat.finetuning.prepare import Build, encoded
from hf_rat.finetuning.processes import say
from hf_rat.finetuning.run import run_job
from hf_rat.finetuning.summary import read_results, table

# What every example's defaults begin with.
DEFAULTS: dict[str, Any] = {
    "do_train": True,
    "do_eval": True,
    "per_device_eval_batch_size": 128,
    "warmup_steps": 0.1,
    "logging_steps": 50,
    "save_strategy": "no",
}
_BASELINE = "plain"


class Example(NamedTuple):
    """What a command does when nothing was named.

    Args:
        task: the row of the generated data.
        rows: makes them: a training and a validation split.
        build: makes the small model.
        told: what the rows are, for the first line.
        defaults: of flags.
    """

    task: Task
    rows: Callable[[], DatasetDict]
    build: Build
    told: str
    defaults: dict[str, Any]


def run_embedded(flags: Flags, stem: str, example: Example) -> dict[str, float]:
    """Train the small model `plain` and with the chosen regularizer, from the same seed; the latter's results.

    Args:
        flags: read with the example's defaults. The regularized model is saved in --output_dir, the results of `plain`
            in its subfolder "plain".
        stem: name of the command, for a fresh folder.
        example: rows and model.

    Raises:
        ValueError: a flag asks for what generated data and a model without pretrained weights cannot give.
    """
    for name in ("lora_r", "config_name", "tokenizer_name", "dropout"):
        if name in flags.given:
            raise ValueError(f"--{name} needs --model_name_or_path: the embedded model has no use for it")
    for name in (
        *("do_predict", "submission_dir", "preset", "text_column_names", "label_column_name"),
        *(
            "streaming",
            "train_size",
            "validation_from_train",
            "unlabeled_file",
            "dataset_config_name",
            "do_regression",
        ),
    ):
        if getattr(flags.training, name, None) or getattr(flags.data, name, None):
            raise ValueError(f"--{name} needs a data set: give --task_name, --dataset_name or --train_file")
    if not (flags.training.do_train and flags.training.do_eval):
        raise ValueError("--do_train and --do_eval cannot be off in the embedded run: it compares two trainings")
    # A second thread costs such a small model more than it gives, several times so on a busy machine.
    torch.set_num_threads(1)
    resume = prepare_folder(flags, stem)
    folder = Path(str(flags.training.output_dir))
    regularizer = flags.training.regularizer()
    rows = example.rows()
    job = _job(flags, example)
    Regularization(regularizer, job.model).close()  # what this model cannot carry is said before `plain` is trained
    say(
        f"No data and no model given: {len(rows['train'])} {example.told}, "
        f"{len(rows['validation'])} for validation, and a small model."
    )
    lines = [["regularizer", "train accuracy", "validation accuracy", "validation loss", "seconds"]]
    changes: dict[str, Any] = {f"reg_{name}": None for name in flags.training.reg_overrides()}
    changes |= {"reg": "plain", "output_dir": str(folder / _BASELINE), "save_strategy": "no", "push_to_hub": False}
    baseline = dataclasses.replace(flags.training, **changes)
    if repr(regularizer) != repr(baseline.regularizer()):
        results = read_results(folder / _BASELINE)
        if results is None:
            results = run_job(dataclasses.replace(flags, training=baseline), _job(flags, example), None)
        lines.append(_line("plain", results))
    results = run_job(flags, job, resume)
    lines.append(_line(repr(regularizer), results))
    say("\n" + table(lines))
    say(f"Model: {folder}, its card: {folder / 'README.md'}")
    return results


def _job(flags: Flags, example: Example) -> Job:
    """A new model from the run's seed, and the encoded rows."""
    set_seed(flags.training.seed)
    rows = example.rows()
    model, tokenizer, labels = example.build(example.task, Labels.of_task(example.task), rows)
    # The card takes a model whose name is a folder for one that was trained from scratch, which this one is.
    model.config._name_or_path = str(flags.training.output_dir)
    card = {"tasks": "text-classification", "dataset": example.told}
    job = Job(example.task, labels, model, tokenizer, named=False, card=card)
    limits = {"train": flags.data.max_train_samples, "validation": flags.data.max_eval_samples}
    splits = {split: encoded(flags, job, example.task, rows, split, limit) for split, limit in limits.items()}
    job.train = splits["train"]
    # The validation split comes last: the card reports what was evaluated last.
    job.evaluation = {"train": splits["train"], "": splits["validation"]}
    return job


def _line(name: str, results: dict[str, float]) -> list[str]:
    numbers = (results["eval_accuracy_train"], results["eval_accuracy"], results["eval_loss"])
    return [name, *(f"{number:.4f}" for number in numbers), f"{results['train_runtime']:.1f}"]
