"""Train an LSTM that reads images pixel by pixel (sequential and permuted MNIST), regularized.

Without data it is trained on made-up digits: hf-rat mnist --side 7 --reg "adversarial_dropout(site='recurrent')"
With data (--data_dir) defaults are those of Park et al. 2019 but for 20 epochs instead of 250: batches of 100, RMSProp
with a decay of 0.5, a learning rate of 1e-3 that falls to zero over the last quarter, gradients of norm 1 at most.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from transformers import set_seed

from hf_rat.data.generated_digits import generated_digits
from hf_rat.data.idx_files import CLASSES, Images, read_mnist
from hf_rat.data.pixel_sequences import pixel_sequences
from hf_rat.data.task import HeldOut, Task
from hf_rat.engine.denormals import without_denormals
from hf_rat.finetuning.blame import reported
from hf_rat.finetuning.flag_names import errors_in_flags
from hf_rat.finetuning.flags import Flags, build, given_flags
from hf_rat.finetuning.folder import in_its_folder, prepare_folder
from hf_rat.finetuning.job import TestSplit
from hf_rat.finetuning.processes import say
from hf_rat.finetuning.run import run_job
from hf_rat.finetuning.sequence_flags import PixelArguments
from hf_rat.finetuning.sequence_model import (
    begin_orthogonally,
    decay_at_the_end,
    sequence_flags,
    sequence_job,
    sequence_rows,
)
from hf_rat.finetuning.summary import summarize
from hf_rat.trainer.training_args import RegularizedTrainingArguments

PROGRAM = "hf-rat mnist"

# Read as text, before this module is imported: the dataclasses of the flags, and the flags of the short help.
FLAGS = {
    "hf_rat.finetuning.sequence_flags": ("PixelArguments",),
    "hf_rat.trainer.training_args": ("RegularizedTrainingArguments",),
}
COMMON = {
    "regularizer": ("reg", "reg_rate", "reg_steps", "reg_alpha"),
    "model": ("hidden_size", "dropout_kind", "recurrent_dropout"),
    "data": ("data_dir", "side", "permutation_seed", "train_size", "validation_size"),
    "training": ("do_train", "do_eval", "do_predict", "num_train_epochs", "learning_rate", "seed"),
    "output": ("output_dir", "save_strategy"),
}
_SETTINGS: dict[str, Any] = {
    "optim": "rmsprop",
    "optim_args": "alpha=0.5",
    "learning_rate": 1e-3,
    "num_train_epochs": 20,
    "per_device_train_batch_size": 100,
    "per_device_eval_batch_size": 500,
    "eval_strategy": "epoch",
    "save_strategy": "epoch",
    "logging_steps": 0.05,
}
OWN_DEFAULTS = tuple(_SETTINGS)
_DECAY = 0.25  # share of the steps, at the end
# Of the made-up digits.
_EXAMPLE: dict[str, Any] = _SETTINGS | {
    "do_train": True,
    "do_eval": True,
    "num_train_epochs": 10,
    "save_strategy": "no",
    "learning_rate": 3e-3,
    "disable_tqdm": True,
    "validation_size": 1000,
}
_MADE = {"train": 3000, "test": 1000}
_MNIST = Task(
    "mnist",
    (),
    tuple(map(str, range(CLASSES))),
    ("accuracy",),
    None,
    "mnist",
    test=(HeldOut("test", labelled=True),),
)


def main(argv: Sequence[str] | None = None) -> int:
    """The command; its exit status, 2 after an error of the user's."""
    return reported(run, argv)


@errors_in_flags()
def run(argv: Sequence[str]) -> dict[str, float]:
    """Do what the flags say; the scores and speeds, as in all_results.json.

    Raises:
        ValueError: bad input, in one line that names the flag or the file.
    """
    given = given_flags(argv, PROGRAM, base=(PixelArguments, RegularizedTrainingArguments))
    example = build(PixelArguments, given).data_dir is None
    defaults = _EXAMPLE if example else _SETTINGS
    pixels = build(PixelArguments, given, defaults)
    if not given.get("do_eval", defaults.get("do_eval")):
        defaults = defaults | {"eval_strategy": "no"}
    flags = sequence_flags(given, defaults)
    with in_its_folder(flags), without_denormals():
        return _run(flags, pixels)


def _run(flags: Flags, pixels: PixelArguments) -> dict[str, float]:
    training = flags.training
    training.regularizer()  # a wrong expression is said before anything is loaded
    resume = prepare_folder(flags, "mnist")
    splits = _splits(flags, pixels)
    rows = {
        split: sequence_rows(pixel_sequences(images.pixels, pixels.side, pixels.permutation_seed), images.labels)
        for split, images in splits.items()
    }
    set_seed(training.seed)
    described = {"side": pixels.side, "permutation_seed": pixels.permutation_seed}
    job = sequence_job(_MNIST, 1, pixels, forget_bias=1.0, images=described)
    begin_orthogonally(job.model)
    job.card = {"tasks": "image-classification", "dataset": "MNIST" if pixels.data_dir else "made-up digits"}
    job.train = rows["train"]
    decay_at_the_end(training, len(rows["train"]), _DECAY, flags.given)
    if training.do_eval:
        job.evaluation = {"": rows["validation"]}
    if training.do_predict:
        job.prediction = [TestSplit(_MNIST, _MNIST.test[0], rows["test"])]
    results = run_job(flags, job, resume)
    summarize(flags, job, results)
    return results


def _splits(flags: Flags, pixels: PixelArguments) -> dict[str, Images]:
    """The splits that the run needs."""
    images = _read(pixels, "train")
    kept = len(images.labels) - pixels.validation_size
    if kept < (pixels.train_size or 1):
        raise ValueError(
            f"--validation_size {pixels.validation_size} leaves {max(0, kept)} of the {len(images.labels)} images to "
            f"train on, {pixels.train_size or 1} are needed"
        )
    splits = {"train": images.part(0, pixels.train_size or kept), "validation": images.part(kept, len(images.labels))}
    if flags.training.do_predict:
        splits["test"] = _read(pixels, "test")
    for split, part in splits.items():
        say(f"{split}: {len(part.labels)} images, {pixels.side} x {pixels.side} pixels read one by one")
    return splits


def _read(pixels: PixelArguments, split: str) -> Images:
    if pixels.data_dir is None:
        say(f"No --data_dir: {_MADE[split]} made-up digits")
        return generated_digits(_MADE[split], seed=list(_MADE).index(split))
    return read_mnist(Path(pixels.data_dir) / _MNIST.folder, split)
