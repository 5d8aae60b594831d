"""Train a small model on texts with labels, or fine-tune any, regularized.

Without data it is trained on generated reviews: hf-rat textcls --reg rat
From scratch, defaults are a learning rate of 1e-3, 5 epochs, batches of 64.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

from datasets import DatasetDict
from transformers import PreTrainedModel, PreTrainedTokenizerBase, set_seed

from hf_rat.data.encoding import Labels
from hf_rat.data.generated_reviews import REVIEWS, generated_reviews
from hf_rat.data.task import Task
from hf_rat.data.tasks import CLUE, TEXTS
from hf_rat.finetuning.blame import reported
from hf_rat.finetuning.example import DEFAULTS, Example, run_example
from hf_rat.finetuning.flag_names import errors_in_flags
from hf_rat.finetuning.flags import Flags, build, given_flags, read_flags
from hf_rat.finetuning.folder import in_its_folder, prepare_folder
from hf_rat.finetuning.from_scratch import (
    FROM_SCRATCH,
    add_callbacks,
    card_of,
    check_words,
    choose_by,
    defaults,
    nearest_named,
)
from hf_rat.finetuning.prepare import SOURCES, load, prepare, require_work
from hf_rat.finetuning.pretrained import load_model
from hf_rat.finetuning.run import run_job
from hf_rat.finetuning.summary import summarize
from hf_rat.finetuning.word_model import build_word_model, word_config
from hf_rat.finetuning.word_model_flags import WordModelArguments

PROGRAM = "hf-rat textcls"

# Read as text, before this module is imported: the dataclasses of the flags, and the flags of the short help.
FLAGS = {
    "hf_rat.finetuning.flags": ("ModelArguments", "DataTrainingArguments"),
    "hf_rat.trainer.training_args": ("RegularizedTrainingArguments",),
    "hf_rat.finetuning.word_model_flags": ("WordModelArguments",),
}
COMMON = {
    "regularizer": ("reg", "reg_epsilon", "reg_alpha", "fast"),
    "model": ("model", "word_vectors", "dropout_kind", "vocabulary", "model_name_or_path"),
    "data": ("dataset_name", "train_file", "validation_file", "test_file", "max_seq_length"),
    "training": (
        *("do_train", "do_eval", "do_predict", "num_train_epochs", "learning_rate", "per_device_train_batch_size"),
        *("eval_strategy", "seed", "bf16", "resume_from_checkpoint"),
    ),
    "output": ("output_dir", "save_strategy", "load_best_model_at_end"),
}
KNOWN = {task.name: task for task in (*TEXTS, *CLUE)}

_SETTINGS: dict[str, Any] = {"max_seq_length": 256}
OWN_DEFAULTS = (*FROM_SCRATCH, *_SETTINGS)
# Of the built-in example: the small model learns the rule and then learns the wrong labels by heart.
_EXAMPLE: dict[str, Any] = DEFAULTS | {
    "learning_rate": 5e-3,
    "num_train_epochs": 20,
    "per_device_train_batch_size": 40,
}
_SMALL: dict[str, Any] = {"embedding_size": 64, "hidden_size": 32}


def main(argv: Sequence[str] | None = None) -> int:
    """The command; its exit status, 2 after an error of the user's."""
    return reported(run, argv)


@errors_in_flags()
def run(argv: Sequence[str]) -> dict[str, float]:
    """Do what the flags say; the scores and speeds, as in all_results.json.

    Raises:
        ValueError: bad input, in one line that names the flag.
    """
    given = given_flags(argv, PROGRAM, (WordModelArguments,))
    words = build(WordModelArguments, given)
    if not any(given.get(name) for name in ("model_name_or_path", *SOURCES)):
        return _run_example(given, words)
    own = given.get("model_name_or_path") is None
    flags = read_flags(given, defaults(given, own, _SETTINGS))
    with in_its_folder(flags):
        return _run(flags, given, words, own)


def _run(flags: Flags, given: Mapping[str, Any], words: WordModelArguments, own: bool) -> dict[str, float]:
    training = flags.training
    require_work(flags, given, model=True)
    _check(flags, words, own)
    training.regularizer()  # a wrong expression is said before anything is loaded
    resume = prepare_folder(flags, "textcls")
    set_seed(training.seed)
    known = KNOWN.get((flags.data.dataset_name or "").lower())
    if known is not None:
        choose_by(flags, known.metrics[0])
    with nearest_named(flags, KNOWN):
        task, labels, rows = load(flags, known, unlabeled=words.pretrain_lm or words.semi_supervised)

    def make(task: Task, labels: Labels, rows: DatasetDict) -> tuple[PreTrainedModel, PreTrainedTokenizerBase, Labels]:
        if own:
            return build_word_model(flags, words, task, labels, rows)
        return load_model(flags.model, labels, None)

    job = prepare(flags, task, labels, rows, make, card_of(flags), known is not None, words.semi_supervised)
    add_callbacks(job, words)
    results = run_job(flags, job, resume)
    summarize(flags, job, results)
    return results


def _check(flags: Flags, words: WordModelArguments, own: bool) -> None:
    if flags.data.task_name is not None:
        raise ValueError(f"--task_name {flags.data.task_name!r} is a flag of run_glue.py: give --dataset_name here")
    if flags.data.preset is not None:
        raise ValueError(f"--preset {flags.data.preset} is a flag of run_glue.py: its settings are GLUE's")
    check_words(flags, words, own)
    if flags.data.submission_dir is not None and (flags.data.dataset_name or "").lower() not in {t.name for t in CLUE}:
        raise ValueError(
            f"--submission_dir {flags.data.submission_dir!r} needs --dataset_name {' or '.join(t.name for t in CLUE)}"
        )


def _run_example(given: Mapping[str, Any], words: WordModelArguments) -> dict[str, float]:
    for name in ("word_vectors", "semi_supervised", "dropout_schedule", "early_stopping_patience"):
        if getattr(words, name):
            raise ValueError(f"--{name} needs a data set: give --dataset_name or --train_file")
    flags = read_flags(given, _EXAMPLE)
    small = build(WordModelArguments, given, _SMALL)

    def make(
        task: Task, labels: Labels, rows: DatasetDict, dropout: float
    ) -> tuple[PreTrainedModel, PreTrainedTokenizerBase, Labels]:
        own = dataclasses.replace(flags, model=dataclasses.replace(flags.model, dropout=dropout))
        return build_word_model(own, small, task, labels, rows)

    example = Example(
        task=REVIEWS,
        rows=lambda seed: generated_reviews(seed=seed),
        build=make,
        dropout=word_config(flags, small).classifier_dropout,
        told="generated reviews (a quarter of their labels are wrong)",
        rat="rat(epsilon=1.0, warmup=150)",
    )
    with in_its_folder(flags):
        return run_example(flags, "textcls", example)
