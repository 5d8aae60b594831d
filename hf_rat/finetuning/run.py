"""What every fine-tuning command does: train, evaluate, predict, save, and say what came out."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from datasets import Dataset
from transformers import Trainer

from hf_rat.data.predictions import predictions_name, write_predictions
from hf_rat.data.submission import write_answers
from hf_rat.data.tagged import split
from hf_rat.finetuning.data_record import record_data
from hf_rat.finetuning.flags import Flags
from hf_rat.finetuning.job import Job, TestSplit
from hf_rat.finetuning.learning_curves import FILE_NAME, draw_learning_curves
from hf_rat.finetuning.longest import require_positions
from hf_rat.finetuning.monte_carlo import MonteCarlo
from hf_rat.finetuning.processes import on_main
from hf_rat.finetuning.settings import Begun, refusals_in_one_line, require_fit, require_scores
from hf_rat.finetuning.whole_splits import WholeSplits, build_trainer, values_of
from hf_rat.passes.dropping_out import find_dropout
from hf_rat.regularizers.recipe import Recipe

_LOOKED_AT = 8  # rows


def run_job(flags: Flags, job: Job, resume: Path | None) -> dict[str, float]:
    """Train, evaluate, predict and save as the flags say; the scores and speeds, as in all_results.json.

    Args:
        flags: do_train, do_eval, do_predict, and where to.
        job: what to train on, evaluate on and answer.
        resume: a whole checkpoint, or None.
    """
    names = job.task.metrics if len(job.task.metrics) == 1 else (*job.task.metrics, "combined_score")
    require_scores(flags, names)
    require_fit(flags, job.model, job.train, job.labels.regression)
    splits = [job.train, job.unlabeled, *job.evaluation.values(), *(one.rows for one in job.prediction)]
    require_positions(
        flags.data.max_seq_length, job.model, job.tokenizer, [rows for rows in splits if rows is not None]
    )
    with refusals_in_one_line(flags):
        trainer = build_trainer(flags, job)
    averaged = _averaged(trainer, flags, job)  # what has no dropout is said before it is trained
    results: dict[str, float] = {}
    if job.train is not None:
        results |= train(flags, trainer, resume, len(job.train) if isinstance(job.train, Dataset) else None)
        record_data(flags, job.task.name)
        # Before the evaluations that follow, whose scores of several splits have one name in the history.
        draw(trainer, job.task.metrics[0], job.beside)
    if job.evaluation:
        evaluated: dict[str, float] = {}
        for suffix, rows in job.evaluation.items():
            metrics = trainer.evaluate(rows)
            metrics["eval_samples"] = len(rows)
            _keep_answers(trainer, f"eval_predictions_{suffix}" if suffix else "eval_predictions")
            evaluated |= {f"{name}_{suffix}" if suffix else name: value for name, value in metrics.items()}
        trainer.log_metrics("eval", evaluated)
        trainer.save_metrics("eval", evaluated)
        results |= evaluated
    if job.train is not None:
        trainer.save_state()
    for test in job.prediction:
        with trainer.averaging(averaged):
            results |= _predict(trainer, flags, job, test)
    publish(trainer, job.card)
    return results


def train(flags: Flags, trainer: Trainer, resume: Path | None, samples: int | None) -> dict[str, float]:
    """Train and save the model; the metrics, which are logged and saved too.

    Args:
        flags: of the run.
        trainer: ready to train.
        resume: a whole checkpoint, or None.
        samples: what it trains on in an epoch; None where that is not known.
    """
    begun = Begun()
    trainer.add_callback(begun)
    with refusals_in_one_line(flags, begun):
        trained = trainer.train(resume_from_checkpoint=None if resume is None else str(resume)).metrics
    if samples is not None:
        trained["train_samples"] = samples
    trainer.save_model()
    trainer.log_metrics("train", trained)
    trainer.save_metrics("train", trained)
    return trained


def draw(trainer: Any, metric: str, beside: Mapping[str, Any]) -> None:
    """The learning curves in the output folder, where the model card finds them.

    Args:
        trainer: with the mixin in front, that has trained.
        metric: the score that is drawn.
        beside: name -> log_history of other runs.
    """
    regularizer = trainer.regularizer
    name = regularizer.name if isinstance(regularizer, Recipe) else "regularized"
    histories = {**beside, name: trainer.state.log_history}
    path = Path(str(trainer.args.output_dir)) / FILE_NAME
    on_main(lambda: draw_learning_curves(path, histories, metric))


def publish(trainer: Trainer, card: Mapping[str, Any]) -> None:
    """Write the model card, and push the folder if that is asked for."""
    if trainer.args.push_to_hub:
        trainer.push_to_hub(**card)
    else:
        trainer.create_model_card(**card)


def _keep_answers(trainer: WholeSplits, name: str) -> None:
    """Write what was answered to the split that was scored last: comparisons of runs pair examples by it."""
    if trainer.answers is None or not trainer.is_world_process_zero():
        return
    folder = Path(str(trainer.args.output_dir))
    folder.mkdir(parents=True, exist_ok=True)
    answers = {part: array for part, array in trainer.answers._asdict().items() if array is not None}
    np.savez_compressed(folder / f"{name}.npz", **answers | {"logits": answers["logits"].astype(np.float32)})


def _averaged(trainer: WholeSplits, flags: Flags, job: Job) -> MonteCarlo | None:
    """Over which passes test splits are answered; None: over the one without dropout."""
    passes = flags.data.mc_samples
    if passes is None:
        return None
    rows = job.prediction[0].rows
    few = list(rows.select(range(min(_LOOKED_AT, len(rows)))))
    inputs = trainer._prepare_inputs(trainer.data_collator(few))  # a loader would draw random numbers
    model = trainer.accelerator.unwrap_model(trainer.model)
    return MonteCarlo(passes, find_dropout(model, inputs, f"--mc_samples {passes}"), job.labels.regression)


def _predict(trainer: WholeSplits, flags: Flags, job: Job, test: TestSplit) -> dict[str, float]:
    """Answer a test split; its scores, if it is labelled."""
    found = trainer.predict(test.rows, metric_key_prefix="test")
    values, scores = _answered(trainer, found.predictions, job), {}
    if test.held_out.labelled:
        scores = {**(found.metrics or {}), "test_samples": len(test.rows)}
        trainer.log_metrics("test", scores)
        trainer.save_metrics("test", scores)
        _keep_answers(trainer, "test_predictions")
    if not trainer.is_world_process_zero():
        return scores
    name = predictions_name(test.task, test.held_out) if job.named else "predict_results.txt"
    answers = None if job.labels.regression else job.labels.names
    spread = None if flags.data.mc_samples is None else found.predictions[1].tolist()
    write_predictions(Path(str(flags.training.output_dir)) / name, values, answers, spread)
    if flags.data.submission_dir is not None:
        write_answers(Path(flags.data.submission_dir), test.task, test.held_out, values)
    return scores


def _answered(trainer: WholeSplits, predictions: Any, job: Job) -> list[Any]:
    """The data set's class number of each row, of tagged sentences a list of them, or the numbers themselves."""
    if not job.task.tagged:
        return values_of(predictions, job.labels).tolist()
    assert trainer.answers is not None  # also without tags: labels mark where each word begins
    assert trainer.answers.words is not None
    return [numbers.tolist() for numbers in split(trainer.answers.predicted, trainer.answers.words)]
