"""Train an LSTM on the temporal order problem, which asks for a long memory, with any recurrent dropout.

The data are made, by fixed seeds: hf-rat temporal-order --dropout_kind recurrent=0.5
Defaults are those of Semeniuta et al. 2016: 200 batches of 32, always the same, SGD with a rate of 0.1, weights from
U(-0.05, 0.05), gradients of norm 5 at most. Training stops when --stop_at is reached on training and test sequences.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from transformers import set_seed

from hf_rat.data.task import Task
from hf_rat.data.temporal_order import CLASSES, SYMBOLS, temporal_order
from hf_rat.engine.denormals import without_denormals
from hf_rat.finetuning.blame import reported
from hf_rat.finetuning.flag_names import errors_in_flags
from hf_rat.finetuning.flags import Flags, build, given_flags
from hf_rat.finetuning.folder import in_its_folder, prepare_folder
from hf_rat.finetuning.processes import say
from hf_rat.finetuning.run import run_job
from hf_rat.finetuning.sequence_flags import TemporalOrderArguments
from hf_rat.finetuning.sequence_model import begin_uniformly, sequence_flags, sequence_job, sequence_rows
from hf_rat.finetuning.stop_when_right import StopWhenRight
from hf_rat.finetuning.summary import summarize
from hf_rat.trainer.training_args import RegularizedTrainingArguments

PROGRAM = "hf-rat temporal-order"

# Read as text, before this module is imported: the dataclasses of the flags, and the flags of the short help.
FLAGS = {
    "hf_rat.finetuning.sequence_flags": ("TemporalOrderArguments",),
    "hf_rat.trainer.training_args": ("RegularizedTrainingArguments",),
}
COMMON = {
    "regularizer": ("reg",),
    "model": ("hidden_size", "dropout_kind", "recurrent_dropout", "dropout_per_step"),
    "data": ("length", "train_batches", "test_size"),
    "training": ("stop_at", "num_train_epochs", "learning_rate", "max_grad_norm", "seed"),
    "output": ("output_dir", "save_strategy"),
}
_SETTINGS: dict[str, Any] = {
    "do_train": True,
    "do_eval": True,
    "optim": "sgd",
    "learning_rate": 0.1,
    "lr_scheduler_type": "constant",
    "max_grad_norm": 5.0,
    "num_train_epochs": 150,
    "per_device_train_batch_size": 32,
    "per_device_eval_batch_size": 500,
    "train_sampling_strategy": "sequential",
    "eval_strategy": "epoch",
    "save_strategy": "epoch",
    "save_total_limit": 1,
    "logging_strategy": "epoch",
    "disable_tqdm": True,
}
OWN_DEFAULTS = tuple(_SETTINGS)
_BOUND = 0.05
_SEEDS = (0, 1)  # of the training and the test sequences: they are the same in every run
_TASK = Task("temporal_order", (), CLASSES, ("accuracy",), None, "", test=())


def main(argv: Sequence[str] | None = None) -> int:
    """The command; its exit status, 2 after an error of the user's."""
    return reported(run, argv)


@errors_in_flags()
def run(argv: Sequence[str]) -> dict[str, float]:
    """Do what the flags say; the scores and speeds, as in all_results.json.

    Raises:
        ValueError: bad input, in one line that names the flag.
    """
    given = given_flags(argv, PROGRAM, base=(TemporalOrderArguments, RegularizedTrainingArguments))
    own = build(TemporalOrderArguments, given)
    flags = sequence_flags(given, _SETTINGS)
    if not (flags.training.do_train and flags.training.do_eval) or flags.training.do_predict:
        raise ValueError("--do_train and --do_eval cannot be off here, and there is no split for --do_predict")
    with in_its_folder(flags), without_denormals():
        return _run(flags, own)


def _run(flags: Flags, own: TemporalOrderArguments) -> dict[str, float]:
    training = flags.training
    training.regularizer()  # a wrong expression is said before anything is made
    resume = prepare_folder(flags, "temporal_order")
    batch = training.per_device_train_batch_size
    train, test = (
        sequence_rows(*temporal_order(count, own.length, seed))
        for count, seed in zip((own.train_batches * batch, own.test_size), _SEEDS, strict=True)
    )
    say(f"{len(train)} sequences of {own.length} symbols to train on, {len(test)} to score")
    set_seed(training.seed)
    job = sequence_job(_TASK, len(SYMBOLS), own, forget_bias=own.forget_bias, length=own.length)
    begin_uniformly(job.model, _BOUND, own.forget_bias)
    job.card = {"tasks": "other", "dataset": f"temporal order, length {own.length}"}
    job.train, job.evaluation = train, {"": test}
    job.callbacks = [StopWhenRight(train, own.stop_at, training.per_device_eval_batch_size)]
    results = run_job(flags, job, resume)
    summarize(flags, job, results)
    return results
