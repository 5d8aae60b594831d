"""What the commands share that train a model from scratch on words or fine-tune any: defaults, refusals, callbacks."""

from __future__ import annotations

import difflib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from transformers import EarlyStoppingCallback

from hf_rat.data.task import Task
from hf_rat.finetuning.flags import Flags
from hf_rat.finetuning.job import Job
from hf_rat.finetuning.prepare import data_names
from hf_rat.finetuning.word_model import word_config
from hf_rat.finetuning.word_model_flags import WordModelArguments
from hf_rat.trainer.dropout_schedule import DropoutSchedule

# Of models that are trained from scratch (Adam 1e-3 as the code that R-AT's experiments grew from).
FROM_SCRATCH: dict[str, Any] = {
    "learning_rate": 1e-3,
    "num_train_epochs": 5,
    "per_device_train_batch_size": 64,
    "per_device_eval_batch_size": 256,
}
# With training and validation: the checkpoint that is best on validation is the one that is kept and tested.
_SELECTION: dict[str, Any] = {
    "eval_strategy": "epoch",
    "save_strategy": "epoch",
    "save_total_limit": 1,
    "load_best_model_at_end": True,
}


def defaults(given: Mapping[str, Any], own: bool, settings: Mapping[str, Any]) -> dict[str, Any]:
    """Other defaults than the Trainer's, for the flags that are not set.

    Args:
        given: the flags that are set.
        own: whether the model is trained from scratch.
        settings: defaults of the command.
    """
    found = {**settings, **(FROM_SCRATCH if own else {})}
    if given.get("do_train") and given.get("do_eval") and given.get("save_strategy") != "no":
        found |= _SELECTION
    return found


def check_words(flags: Flags, words: WordModelArguments, own: bool) -> None:
    """Refuse flags that do not fit each other.

    Args:
        flags: of the run.
        words: of the model from scratch.
        own: whether there is one.

    Raises:
        ValueError: which flag, and what would be right.
    """
    if not own:
        plain = WordModelArguments()
        shared = ("dropout_schedule", "dropout_gamma", "early_stopping_patience", "semi_supervised")
        for name, value in vars(words).items():
            if value != getattr(plain, name) and name not in shared:
                raise ValueError(f"--{name} {value!r} is for --model: --model_name_or_path brings its own")
    else:
        word_config(flags, words)  # a flag that the model has no use for is said before anything is loaded
    for name in ("unlabeled_file", "unlabeled_size"):
        if (value := getattr(flags.data, name)) is not None and not (words.pretrain_lm or words.semi_supervised):
            raise ValueError(f"--{name} {value!r} needs --pretrain_lm or --semi_supervised")
    if own and flags.model.lora_r is not None:
        raise ValueError(
            f"--lora_r {flags.model.lora_r} needs --model_name_or_path: an adapter is for trained weights"
        )
    if words.early_stopping_patience is not None and not flags.training.load_best_model_at_end:
        raise ValueError(
            f"--early_stopping_patience {words.early_stopping_patience} needs --do_train, --do_eval and a "
            "--save_strategy: the best checkpoint is the one that is kept"
        )


def choose_by(flags: Flags, score: str) -> None:
    """The best checkpoint is that of the highest score, where one is chosen and no flag says by what.

    Args:
        flags: `training.metric_for_best_model` is set.
        score: without "eval_"; more of it is better.
    """
    training = flags.training
    if training.load_best_model_at_end and "metric_for_best_model" not in flags.given:
        training.metric_for_best_model, training.greater_is_better = score, True


@contextmanager
def nearest_named(flags: Flags, known: Mapping[str, Task]) -> Iterator[None]:
    """An error about a data set that is not known also names those that have nearly that name."""
    name = flags.data.dataset_name or ""
    try:
        yield
    except ValueError as error:
        near = difflib.get_close_matches(name, known, n=2)
        if name.lower() not in known and near:
            raise ValueError(f"{error}; did you mean {' or '.join(near)}?") from error
        raise


def card_of(flags: Flags) -> dict[str, Any]:
    """What the model card says of model and data."""
    name = flags.model.model_name_or_path
    return data_names(flags) | ({} if name is None else {"finetuned_from": name})


def add_callbacks(job: Job, words: WordModelArguments) -> None:
    """The callbacks that the flags ask for."""
    if words.dropout_schedule is not None:
        job.callbacks.append(DropoutSchedule(words.dropout_schedule, words.dropout_gamma))
    if words.early_stopping_patience is not None:
        job.callbacks.append(EarlyStoppingCallback(words.early_stopping_patience))
