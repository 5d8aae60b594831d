"""What every fine-tuning command does: encode, train, evaluate, predict, save, and say what came out."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from accelerate import PartialState
from accelerate.utils import broadcast_object_list
from datasets import Dataset, IterableDataset
from transformers import (
    DataCollatorWithPadding,
    EvalPrediction,
    PreTrainedTokenizerBase,
    TrainerCallback,
    default_data_collator,
)

from hf_rat.checkpoints import fresh_folder, resume_point
from hf_rat.commands.flags import DataTrainingArguments, Flags
from hf_rat.commands.learning_curves import FILE_NAME, draw_learning_curves
from hf_rat.data.encoding import Labels, tokenize
from hf_rat.data.loading import require_rows
from hf_rat.data.metrics import TaskMetric
from hf_rat.data.submission import write_answers
from hf_rat.data.tasks import HeldOut, Task
from hf_rat.regularizers.recipes import Recipe
from hf_rat.speed import tokens_per_second
from hf_rat.trainer import RegularizedTrainer

T = TypeVar("T")


@dataclass
class Asked:
    """A test split to be answered: its task (another one than the model's for AX), the split and its encoded rows."""

    task: Task
    held_out: HeldOut
    rows: Dataset


@dataclass
class Job:
    """One run, made ready.

    Args:
        task: the row of the data set; for data of the user's own, a row made for the occasion.
        labels: its labels, in the model's order.
        model: the classifier.
        tokenizer: of the model.
        train: encoded training rows, or a stream of them; None without --do_train.
        unlabeled: encoded rows without labels, for the terms that need none.
        evaluation: suffix of the scores -> encoded rows; "" is the split that counts. Empty without --do_eval.
        prediction: test splits; empty without --do_predict.
        named: whether `task` has a name that outputs should carry.
        card: what the model card says of model and data: keyword arguments of `Trainer.create_model_card`.
        callbacks: of the trainer.
        beside: name -> log_history of other runs, which the picture of the learning curves shows too.
    """

    task: Task
    labels: Labels
    model: Any
    tokenizer: PreTrainedTokenizerBase
    train: Dataset | IterableDataset | None = None
    unlabeled: Dataset | None = None
    evaluation: dict[str, Dataset] = field(default_factory=dict)
    prediction: list[Asked] = field(default_factory=list)
    named: bool = True
    card: dict[str, Any] = field(default_factory=dict)
    callbacks: list[TrainerCallback] = field(default_factory=list)
    beside: dict[str, list[dict[str, Any]]] = field(default_factory=dict)


def on_main(act: Callable[[], T]) -> T:
    """Do something in the main process only, and give every process what it returned, or raise in all what it raised.

    Raises:
        ValueError: `act` raised one.
    """
    outcome: list[Any] = [None, None]
    if PartialState().is_main_process:
        try:
            outcome = [act(), None]
        except ValueError as error:
            outcome = [None, str(error)]
    broadcast_object_list(outcome)
    if outcome[1] is not None:
        raise ValueError(outcome[1])
    return outcome[0]


def say(text: str) -> None:
    """Print in the main process."""
    if PartialState().is_main_process:
        print(text, flush=True)


def prepare_folder(flags: Flags, stem: str) -> Path | None:
    """Settle `training.output_dir`, and return the checkpoint to continue from, or None.

    Args:
        flags: without --output_dir, the run gets a fresh folder runs/<stem>-<number>.
        stem: name of the command.

    Raises:
        ValueError: the folder is not empty, or what is to be resumed is not whole.
    """
    training = flags.training
    if training.device.type == "cpu" and "dataloader_pin_memory" not in flags.given:
        training.dataloader_pin_memory = False  # without an accelerator it does nothing but warn
    if "output_dir" not in flags.given:
        if training.resume_from_checkpoint is not None:
            raise ValueError("--resume_from_checkpoint needs --output_dir: the folder of the run that goes on")
        training.output_dir = str(on_main(lambda: fresh_folder(Path("runs"), stem)))
        return None
    if not training.do_train:
        return None
    return on_main(lambda: resume_point(Path(str(training.output_dir)), training.resume_from_checkpoint))


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
    require_rows(rows, what)
    if limit is not None:
        rows = rows.select(range(min(limit, len(rows))))
    if labels is not None:
        rows = labels.encode(rows, task.label_column, what)
    elif task.label_column in rows.column_names:
        rows = rows.remove_columns(task.label_column)
    length = min(data.max_seq_length, tokenizer.model_max_length)
    with flags.training.main_process_first(desc="tokenizing"):
        rows = tokenize(rows, tokenizer, task.text_columns, length, data.pad_to_max_length, data.overwrite_cache, what)
    keep = {*tokenizer.model_input_names, "label"}
    return rows.remove_columns([column for column in rows.column_names if column not in keep])


def build_trainer(flags: Flags, job: Job) -> RegularizedTrainer:
    """The trainer of a job, with the scores of its task."""
    metric = TaskMetric(job.task.metrics, job.labels.regression)

    def scores(prediction: EvalPrediction) -> dict[str, float]:
        return metric.compute(
            predictions=_values(prediction.predictions, job.labels),
            references=prediction.label_ids
            if job.labels.regression
            else job.labels.from_model(np.asarray(prediction.label_ids)),
        )

    if flags.data.pad_to_max_length:
        collator: Any = default_data_collator
    else:
        half = flags.training.fp16 or flags.training.bf16
        collator = DataCollatorWithPadding(job.tokenizer, pad_to_multiple_of=8 if half else None)
    return RegularizedTrainer(
        model=job.model,
        args=flags.training,
        train_dataset=job.train,
        eval_dataset=job.evaluation.get(""),
        unlabeled_dataset=job.unlabeled,
        compute_metrics=scores,
        processing_class=job.tokenizer,
        data_collator=collator,
        callbacks=job.callbacks,
    )


def _values(logits: Any, labels: Labels) -> np.ndarray:
    """The data set's class numbers, or the numbers themselves, (rows,)."""
    logits = np.asarray(logits[0] if isinstance(logits, tuple) else logits)
    return logits.reshape(-1) if labels.regression else labels.from_model(logits.argmax(axis=1))


def run_job(flags: Flags, job: Job, resume: Path | None) -> dict[str, float]:
    """Train, evaluate, predict and save as the flags say; the scores and speeds, as in all_results.json.

    Args:
        flags: do_train, do_eval, do_predict, and where to.
        job: what to train on, evaluate on and answer.
        resume: a whole checkpoint, or None.
    """
    trainer = build_trainer(flags, job)
    say(trainer.announcement())
    results: dict[str, float] = {}
    if job.train is not None:
        trained = trainer.train(resume_from_checkpoint=None if resume is None else str(resume)).metrics
        if isinstance(job.train, Dataset):
            trained["train_samples"] = len(job.train)
        trainer.save_model()
        if not (trainer.regularization.is_plain or trainer.regularization.engine.steps_in_backward):
            speeds = tokens_per_second(
                trainer.regularization, trainer.get_train_dataloader(), trainer.state.global_step
            )
            trained["train_tokens_per_second"], trained["train_plain_tokens_per_second"] = speeds
        trainer.log_metrics("train", trained)
        trainer.save_metrics("train", trained)
        results |= trained
        # Before the evaluations that follow, whose scores of several splits have one name in the history.
        _draw(trainer, job)
    if job.evaluation:
        evaluated: dict[str, float] = {}
        for suffix, rows in job.evaluation.items():
            metrics = trainer.evaluate(rows)
            metrics["eval_samples"] = len(rows)
            evaluated |= {f"{name}_{suffix}" if suffix else name: value for name, value in metrics.items()}
        trainer.log_metrics("eval", evaluated)
        trainer.save_metrics("eval", evaluated)
        results |= evaluated
    if job.train is not None:
        trainer.save_state()
    for asked in job.prediction:
        results |= _predict(trainer, flags, job, asked)
    if flags.training.push_to_hub:
        trainer.push_to_hub(**job.card)
    else:
        trainer.create_model_card(**job.card)
    return results


def _draw(trainer: RegularizedTrainer, job: Job) -> None:
    """The learning curves in the output folder, where the model card finds them."""
    regularizer = trainer.regularizer
    name = regularizer.name if isinstance(regularizer, Recipe) else "regularized"
    histories = {**job.beside, name: trainer.state.log_history}
    path = Path(str(trainer.args.output_dir)) / FILE_NAME
    on_main(lambda: draw_learning_curves(path, histories, job.task.metrics[0]))


def _predict(trainer: RegularizedTrainer, flags: Flags, job: Job, asked: Asked) -> dict[str, float]:
    """Answer a test split; its scores, if it is labelled."""
    found = trainer.predict(asked.rows, metric_key_prefix="test")
    values, scores = _values(found.predictions, job.labels), {}
    if asked.held_out.labelled:
        scores = {**(found.metrics or {}), "test_samples": len(asked.rows)}
        trainer.log_metrics("test", scores)
        trainer.save_metrics("test", scores)
    if not trainer.is_world_process_zero():
        return scores
    name = "-".join(part for part in (asked.task.name.replace("/", "-"), asked.held_out.suffix) if part)
    folder = Path(str(flags.training.output_dir))
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / (f"predict_results_{name}.txt" if job.named else "predict_results.txt")).open("w") as file:
        file.write("index\tprediction\n")
        for index, value in enumerate(values):
            answer = f"{value:.3f}" if job.labels.regression else job.labels.names[int(value)]
            file.write(f"{index}\t{answer}\n")
    if flags.data.submission_dir is not None:
        write_answers(Path(flags.data.submission_dir), asked.task, asked.held_out, values.tolist())
    return scores
