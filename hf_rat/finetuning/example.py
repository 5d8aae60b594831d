"""The built-in example: no data and no model were named, so generated rows train a small model, in three ways.

The rows are drawn by the run's seed, and made to show what a regularizer does: few, with labels that are wrong, so
that plain training for as many steps learns them by heart.
"""

from __future__ import annotations

import dataclasses
import json
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import torch
from datasets import Dataset, DatasetDict
from transformers import PreTrainedModel, PreTrainedTokenizerBase, PrinterCallback, TrainerCallback, set_seed

from hf_rat.data.encoding import Labels
from hf_rat.data.task import Task
from hf_rat.engine.regularization import Regularization
from hf_rat.finetuning.flags import Flags
from hf_rat.finetuning.folder import prepare_folder
from hf_rat.finetuning.job import Job
from hf_rat.finetuning.learning_curves import FILE_NAME
from hf_rat.finetuning.prepare import encoded
from hf_rat.finetuning.processes import on_main, say
from hf_rat.finetuning.run import run_job
from hf_rat.finetuning.summary import read_results, table
from hf_rat.finetuning.whole_splits import build_trainer
from hf_rat.regularizers.algebra import FULL_STRENGTH
from hf_rat.regularizers.recipe import Recipe

# What every example's defaults begin with.
DEFAULTS: dict[str, Any] = {
    "do_train": True,
    "do_eval": True,
    "per_device_eval_batch_size": 250,
    "warmup_steps": 0.1,
    "logging_steps": 0.05,
    "eval_strategy": "steps",
    "eval_steps": 0.2,
    "save_strategy": "no",
    "disable_tqdm": True,
}
_PLAIN, _TUNED = "plain", "plain-tuned"
_RATES = (0.1, 0.3, 0.5)
_HELD_BACK = 0.2
# Score, 0 to 1 -> what it is called in a sentence and in the table.
_SHOWN = {"accuracy": ("accuracy", "acc."), "span_f1": ("F1", "F1")}
# Points of the score by which two trainings may differ by chance: twice the standard error on 2,000 rows.
_TIE = 2.0


class Example(NamedTuple):
    """What a command does when nothing was named.

    Args:
        task: the row of the generated data; its first score, a key of `_SHOWN`, is shown.
        rows: makes them from a seed: a training and a validation split.
        build: (task, labels, rows, dropout rate) makes the small model.
        dropout: its usual rate.
        told: what the rows are, for the first line.
        rat: what `--reg rat`, without an argument, stands for here.
    """

    task: Task
    rows: Callable[[int], DatasetDict]
    build: Callable[[Task, Labels, DatasetDict, float], tuple[PreTrainedModel, PreTrainedTokenizerBase, Labels]]
    dropout: float
    told: str
    rat: str


def run_example(flags: Flags, stem: str, example: Example) -> dict[str, float]:
    """Train the small model plainly, with the chosen regularizer, and plainly with what held-back rows choose.

    Args:
        flags: read with the example's defaults. The regularized model is saved in --output_dir, the others in its
            subfolders "plain" and "plain-tuned".
        stem: name of the command, for a fresh folder.
        example: rows and model.

    Returns:
        The results of the chosen regularizer. If it is `plain`, or with --alone, nothing else is trained.

    Raises:
        ValueError: a flag asks for what generated data and a model without pretrained weights cannot give.
    """
    _require(flags)
    # A second thread costs such a small model more than it gives, several times so on a busy machine.
    torch.set_num_threads(1)
    resume = prepare_folder(flags, stem)
    training = flags.training
    folder = Path(str(training.output_dir))
    rows = example.rows(training.seed)
    say(
        f"No data and no model given: {len(rows['train'])} {example.told}, made to show what a regularizer does; "
        f"{len(rows['validation'])} with true labels to evaluate on; and a small model."
    )
    if training.reg.strip() in ("rat", "rat()") and not training.reg_overrides():
        training.reg = example.rat
        say(f"--reg rat stands for {example.rat} in this example; with arguments of your own it is what you say.")
    regularizer = training.regularizer()
    job = _job(flags, example, rows, example.dropout)
    # What this model or this run cannot carry is said before `plain` is trained. The Trainer counts steps of epochs.
    steps = training.max_steps if training.max_steps > 0 else FULL_STRENGTH
    Regularization(regularizer, job.model, total_steps=steps).close()
    name = regularizer.name if isinstance(regularizer, Recipe) else "regularized"
    changes: dict[str, Any] = {f"reg_{name}": None for name in training.reg_overrides()}
    changes |= {"reg": "plain", "save_strategy": "no", "push_to_hub": False}
    controls: dict[str, Any] = {"average": None, "layer_decay": None, "probe_steps": 0}
    changes |= controls
    plain_flags = dataclasses.replace(flags, training=dataclasses.replace(training, **changes))
    controlled = [f"{name}={getattr(training, name)}" for name in controls if getattr(training, name)]
    name = ", ".join([name, *controlled])
    alike = repr(regularizer) == repr(plain_flags.training.regularizer()) and not controlled
    if flags.data.alone or alike:
        results = run_job(flags, job, resume)
        say("\n" + table([_head(example), _line(example, name, example.dropout, results)]))
    else:
        plain = _trained(plain_flags, example, rows, folder / _PLAIN, example.dropout, 1.0)
        choice = _choice(plain_flags, example, rows, folder / _TUNED)
        tuned = _trained(plain_flags, example, rows, folder / _TUNED, choice["dropout"], choice["share"])
        state = json.loads((folder / _PLAIN / "trainer_state.json").read_text(encoding="utf-8"))
        job.beside = {"plain": state["log_history"]}
        results = run_job(flags, job, resume)
        lines = [_line(example, "plain", example.dropout, plain), _line(example, name, example.dropout, results)]
        say("\n" + table([_head(example), *lines, _line(example, "plain, tuned", choice["dropout"], tuned)]))
        say(f"{name}: {regularizer!r}. {_reading(example, plain, results, tuned)}")
    say(f"Model: {folder}, its card: {folder / 'README.md'}, learning curves: {folder / FILE_NAME}")
    return results


def _require(flags: Flags) -> None:
    for name in ("lora_r", "reinit_layers", "config_name", "tokenizer_name", "dropout"):
        if name in flags.given:
            raise ValueError(f"--{name} needs --model_name_or_path: the model of the example has no use for it")
    for name in (
        *("do_predict", "submission_dir", "mc_samples", "preset", "text_column_names", "label_column_name"),
        *(
            "streaming",
            "train_size",
            "validation_from_train",
            "unlabeled_file",
            "unlabeled_size",
            "dataset_config_name",
            "do_regression",
        ),
    ):
        if getattr(flags.training, name, None) or getattr(flags.data, name, None):
            raise ValueError(f"--{name} needs a data set: give --task_name, --dataset_name or --train_file")
    if not (flags.training.do_train and flags.training.do_eval):
        raise ValueError("--do_train and --do_eval cannot be off in the example: it compares two trainings")


def _job(flags: Flags, example: Example, rows: DatasetDict, dropout: float) -> Job:
    """A new model from the run's seed, and the encoded rows."""
    set_seed(flags.training.seed)
    model, tokenizer, labels = example.build(example.task, Labels.of_task(example.task), rows, dropout)
    # The card takes a model whose name is a folder for one that was trained from scratch, which this one is.
    model.config._name_or_path = str(flags.training.output_dir)
    card = {"tasks": example.task.pipeline, "dataset": example.told}
    job = Job(example.task, labels, model, tokenizer, named=False, card=card)
    limits = {"train": flags.data.max_train_samples, "validation": flags.data.max_eval_samples}
    splits = {split: encoded(flags, job, example.task, rows, split, limit) for split, limit in limits.items()}
    job.train = splits["train"]
    # The validation split comes last: the card reports what was evaluated last.
    job.evaluation = {"train": splits["train"], "": splits["validation"]}
    return job


def _trained(
    flags: Flags, example: Example, rows: DatasetDict, folder: Path, dropout: float, share: float
) -> dict[str, float]:
    """The results of a share of one plain training, in a folder of its own; those of a finished one are kept."""
    results = read_results(folder)
    if results is None:
        own = dataclasses.replace(
            flags, training=dataclasses.replace(flags.training, output_dir=str(folder), resume_from_checkpoint=None)
        )
        job = _job(own, example, rows, dropout)
        job.callbacks = [_StopAt(share)]
        results = run_job(own, job, None)
    return results


def _choice(flags: Flags, example: Example, rows: DatasetDict, folder: Path) -> dict[str, Any]:
    """The dropout rate, and the share of the run, that had the lowest loss on training rows that were held back.

    The held-back rows have wrong labels among them, as all training rows do: nothing but training data chooses.
    """
    kept = folder / "choice.json"
    if read_results(folder) is not None and kept.is_file():
        return json.loads(kept.read_text(encoding="utf-8"))
    trials: list[dict[str, Any]] = []
    for dropout in _RATES:
        with tempfile.TemporaryDirectory() as nowhere:
            training = dataclasses.replace(
                flags.training,
                output_dir=nowhere,
                report_to="none",
                logging_strategy="no",
                eval_strategy="epoch",
            )
            own = dataclasses.replace(flags, training=training)
            job = _job(own, example, rows, dropout)
            assert isinstance(job.train, Dataset)
            count = max(1, round(_HELD_BACK * len(job.train)))
            job.evaluation = {"": job.train.select(range(count))}
            job.train = job.train.select(range(count, len(job.train)))
            trainer = build_trainer(own, job)
            trainer.remove_callback(PrinterCallback)
            trainer.train()
        logs = [log for log in trainer.state.log_history if "eval_loss" in log]
        best = min(logs, key=lambda log: log["eval_loss"])
        share = best["step"] / trainer.state.max_steps
        trials.append({"dropout": dropout, "share": share, "held_back_loss": best["eval_loss"]})
        say(
            f"plain, dropout {dropout}: lowest loss on held-back rows {best['eval_loss']:.4f}, epoch {best['epoch']:g}"
        )
    choice = {**min(trials, key=lambda trial: trial["held_back_loss"]), "trials": trials}

    def keep() -> None:
        folder.mkdir(parents=True, exist_ok=True)
        kept.write_text(json.dumps(choice, indent=1) + "\n", encoding="utf-8")

    on_main(keep)
    return choice


class _StopAt(TrainerCallback):
    """Stop after so many steps, without another learning rate than a whole run has until then."""

    def __init__(self, share: float) -> None:
        self.share = share

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step >= round(self.share * state.max_steps):
            control.should_training_stop = True


def _head(example: Example) -> list[str]:
    score = _SHOWN[example.task.metrics[0]][1]
    return ["training", "dropout", "epochs", f"train {score}", f"clean {score}", "clean loss", "seconds"]


def _line(example: Example, name: str, dropout: float, results: dict[str, float]) -> list[str]:
    score = f"eval_{example.task.metrics[0]}"
    scores = (results[f"{score}_train"], results[score], results["eval_loss"])
    numbers = [f"{number:.4f}" for number in scores]
    return [name, f"{dropout:g}", f"{results['epoch']:.3g}", *numbers, f"{results['train_runtime']:.1f}"]


def _reading(example: Example, plain: dict[str, float], results: dict[str, float], tuned: dict[str, float]) -> str:
    """What the table says, in words."""
    metric = example.task.metrics[0]
    own, usual, best = (100 * each[f"eval_{metric}"] for each in (results, plain, tuned))
    tie = ", a tie: less than 2 is chance" if abs(own - best) < _TIE else ""
    return (
        f"Clean {_SHOWN[metric][0]}: {own - usual:+.1f} points to plain at the same steps; {own - best:+.1f} to plain "
        f"whose dropout and epochs were chosen on held-back training rows{tie}. The data are made to show the effect."
    )
