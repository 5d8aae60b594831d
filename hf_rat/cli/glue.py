"""Fine-tune on a GLUE task, a data set of the Hub or files, with any regularizer.

Without data a small one is trained on generated pairs: hf-rat glue --reg rat
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from datasets import DatasetDict
from transformers import BertForSequenceClassification, PreTrainedModel, PreTrainedTokenizerBase, set_seed

from hf_rat.data.encoding import Labels
from hf_rat.data.generated import GENERATED, example_pairs, generated_config, generated_tokenizer
from hf_rat.data.loading import load_task
from hf_rat.data.task import Task
from hf_rat.data.tasks import find
from hf_rat.finetuning.blame import reported
from hf_rat.finetuning.example import DEFAULTS, Example, run_example
from hf_rat.finetuning.flag_names import errors_in_flags
from hf_rat.finetuning.flags import Flags, given_flags, read_flags
from hf_rat.finetuning.folder import in_its_folder, prepare_folder
from hf_rat.finetuning.prepare import SOURCES, data_names, load, prepare, require_work, test_splits
from hf_rat.finetuning.preset import apply_paper
from hf_rat.finetuning.pretrained import load_model, number_labels
from hf_rat.finetuning.processes import say
from hf_rat.finetuning.run import run_job
from hf_rat.finetuning.summary import summarize

PROGRAM = "hf-rat glue"

# Of the built-in example: the small model learns the rule and then learns the wrong labels by heart.
_EXAMPLE: dict[str, Any] = DEFAULTS | {
    "learning_rate": 4e-3,
    "num_train_epochs": 20,
    "per_device_train_batch_size": 40,
}
# Read as text, before this module is imported: the dataclasses of the flags, and the flags of the short help.
FLAGS = {
    "hf_rat.finetuning.flags": ("ModelArguments", "DataTrainingArguments"),
    "hf_rat.trainer.training_args": ("RegularizedTrainingArguments",),
}
COMMON = {
    "regularizer": ("reg", "reg_epsilon", "reg_alpha", "fast"),
    "model": ("model_name_or_path", "dropout", "lora_r"),
    "data": (
        "task_name",
        "dataset_name",
        "train_file",
        "validation_file",
        "test_file",
        "max_seq_length",
        "train_size",
    ),
    "training": (
        *("do_train", "do_eval", "do_predict", "num_train_epochs", "learning_rate", "per_device_train_batch_size"),
        *("eval_strategy", "seed", "bf16", "resume_from_checkpoint"),
    ),
    "output": ("output_dir", "save_strategy", "submission_dir"),
}


def main(argv: Sequence[str] | None = None) -> int:
    """The command; its exit status, 2 after an error of the user's."""
    return reported(run, argv)


@errors_in_flags()
def run(argv: Sequence[str]) -> dict[str, float]:
    """Do what the flags say; the scores and speeds, as in all_results.json.

    Raises:
        ValueError: bad input, in one line that names the flag.
    """
    given = given_flags(argv, PROGRAM)
    if not any(given.get(name) for name in ("model_name_or_path", *SOURCES)):
        flags = read_flags(given, _EXAMPLE)
        with in_its_folder(flags):
            return run_example(flags, "glue", EXAMPLE)
    flags = read_flags(given)
    with in_its_folder(flags):
        return _run(flags, given)


def _run(flags: Flags, given: Mapping[str, Any]) -> dict[str, float]:
    data, training = flags.data, flags.training
    require_work(flags, given, flags.model.model_name_or_path is not None)
    _check_submission(flags)
    for name in ("unlabeled_file", "unlabeled_size"):
        if (value := getattr(data, name)) is not None:
            raise ValueError(f"--{name} {value!r} is a flag of run_textcls.py")
    task = find(data.task_name) if data.task_name is not None else None
    if data.preset is not None:
        say(apply_paper(flags, task))
    training.regularizer()  # a wrong expression is said before anything is loaded
    resume = prepare_folder(flags, "glue")
    set_seed(training.seed)
    task, labels, rows = load(flags, task)

    def build(
        task: Task, labels: Labels, rows: DatasetDict
    ) -> tuple[PreTrainedModel, PreTrainedTokenizerBase, Labels]:
        return load_model(flags.model, labels, data.task_name)

    job = prepare(flags, task, labels, rows, build, _card(flags, task), named=data.task_name is not None)
    if training.do_predict and task.also_predicts is not None:
        other = find(task.also_predicts)
        found = _test_rows(flags, other)
        if found is not None:
            job.prediction += test_splits(flags, job, other, found)
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


def _card(flags: Flags, task: Task) -> dict[str, Any]:
    card: dict[str, Any] = {"finetuned_from": flags.model.model_name_or_path}
    if flags.data.task_name is not None:
        card |= {"dataset": f"GLUE {task.name.upper()}", "dataset_tags": "glue", "dataset_args": task.name}
        card["language"] = "en"
    else:
        card |= data_names(flags)
    return card


def _test_rows(flags: Flags, task: Task) -> DatasetDict | None:
    """The test splits of a task that this model answers too, when its data is at hand."""
    folder = flags.data.data_dir
    splits = [part.split for part in task.test]
    if folder is not None:
        absent = [split for split in splits if not (Path(folder) / task.folder / f"{split}.parquet").is_file()]
        if absent:
            say(f"--data_dir {folder!r} has no {task.folder}/{absent[0]}.parquet: {task.name} is not predicted.")
            return None
    return load_task(task, splits, folder, flags.model.cache_dir, flags.model.token)


def _small_bert(
    task: Task, labels: Labels, rows: DatasetDict, dropout: float
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase, Labels]:
    tokenizer = generated_tokenizer(asides=True)
    config = generated_config(tokenizer, hidden_size=32, layers=1, dropout=dropout)
    # Small weights: the model begins with averages of words, learns the rule in three epochs, and then overfits.
    config.initializer_range = 0.05
    return BertForSequenceClassification(config), tokenizer, number_labels(config, labels)


EXAMPLE = Example(
    task=GENERATED,
    rows=example_pairs,
    build=_small_bert,
    dropout=0.1,
    told="generated pairs (a quarter of their labels are wrong)",
    rat="rat(epsilon=0.3, begin=0.23, warmup=0.23)",
)
