"""The trainer of the commands: whole splits are scored, by the scores of their task."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import numpy as np
import torch
from transformers import (
    DataCollatorForTokenClassification,
    DataCollatorWithPadding,
    EvalPrediction,
    default_data_collator,
)
from transformers.trainer_pt_utils import nested_numpify

from hf_rat.data.encoding import Labels
from hf_rat.data.metrics import scores_of
from hf_rat.data.tagged import span_scores
from hf_rat.data.word_encoding import IGNORED
from hf_rat.finetuning.flags import Flags
from hf_rat.finetuning.job import Job
from hf_rat.finetuning.monte_carlo import MonteCarlo, average_passes
from hf_rat.passes.dropout import RandomState
from hf_rat.passes.dropping_out import dropping_out
from hf_rat.trainer.trainer import RegularizedTrainer


class Answers(NamedTuple):
    """What a model answered to a labelled split, row by row.

    Args:
        logits: float32 (rows, classes) in the model's order of classes; (rows,) for regression.
        predicted: the data set's class numbers, or the numbers themselves, (rows,).
        expected: likewise.
        words: of rows whose words have a tag each, their number, (rows,); the others then stand for all words, one row
            after the other.
    """

    logits: np.ndarray
    predicted: np.ndarray
    expected: np.ndarray
    words: np.ndarray | None = None

    @classmethod
    def of(cls, predictions: Any, references: Any, job: Job) -> Answers:
        """What a model gave out, and the model's numbers of the labels (batch, ...)."""
        references, logits = _array(references), _logits(predictions, job.labels)
        if not job.task.tagged:
            expected = references if job.labels.regression else job.labels.from_model(references)
            return cls(logits, values_of(predictions, job.labels), expected.reshape(-1))
        marked = references != IGNORED
        predicted = job.labels.from_model(logits[marked].argmax(-1))
        return cls(logits[marked], predicted, job.labels.from_model(references[marked]), marked.sum(1))

    @classmethod
    def joined(cls, parts: Sequence[Answers]) -> Answers:
        """Those to several batches, one after the other."""
        columns = [[column for column in columns if column is not None] for columns in zip(*parts, strict=True)]
        return cls(*(np.concatenate(column) for column in columns if column))

    def scores(self, job: Job) -> dict[str, float]:
        """The scores of the job's task."""
        if self.words is not None:
            return span_scores(job.labels.names, self.predicted, self.expected, self.words)
        return scores_of(job.task.metrics, self.predicted, self.expected)


class WholeSplits(RegularizedTrainer):
    """`--dataloader_drop_last` and `--train_sampling_strategy` are about training: every row is answered, in order.

    Attributes:
        answers: to what was scored last; None before that, and where only the loss is asked for.
    """

    answers: Answers | None = None
    _monte_carlo: MonteCarlo | None = None

    @contextmanager
    def averaging(self, over: MonteCarlo | None) -> Iterator[None]:
        """Predictions inside are (logits, spread) of `average_passes`, and the loss is the mean of the passes' losses.

        Args:
            over: passes with dropout, whose random numbers follow from the run's seed; None changes nothing.
        """
        if over is None:
            yield
            return
        before, self._monte_carlo = RandomState(self.args.device), over
        torch.manual_seed(self.args.seed + self.args.process_index)
        try:
            yield
        finally:
            self._monte_carlo = None
            before.restore()

    def prediction_step(self, *args: Any, **kwargs: Any) -> Any:
        over = self._monte_carlo
        if over is None:
            return super().prediction_step(*args, **kwargs)
        with dropping_out(over.dropout):
            losses, outputs, labels = zip(
                *(super(WholeSplits, self).prediction_step(*args, **kwargs) for _ in range(over.passes)), strict=True
            )
        logits = [one[0] if isinstance(one, tuple) else one for one in outputs]
        loss = None if losses[0] is None else torch.stack(losses).mean()
        return loss, tuple(average_passes(logits, over.regression)), labels[0]

    def get_eval_dataloader(self, eval_dataset: Any = None) -> Any:
        with self._whole_and_in_order():
            return super().get_eval_dataloader(eval_dataset)

    def get_test_dataloader(self, test_dataset: Any) -> Any:
        with self._whole_and_in_order():
            return super().get_test_dataloader(test_dataset)

    @contextmanager
    def _whole_and_in_order(self) -> Iterator[None]:
        asked = {name: getattr(self.args, name) for name in ("dataloader_drop_last", "train_sampling_strategy")}
        self.args.dataloader_drop_last, self.args.train_sampling_strategy = False, "sequential"
        try:
            yield
        finally:
            for name, value in asked.items():
                setattr(self.args, name, value)


def build_trainer(flags: Flags, job: Job) -> WholeSplits:
    """The trainer of a job, with the scores of its task."""
    parts: list[Answers] = []

    def scores(prediction: EvalPrediction, compute_result: bool = True) -> dict[str, float]:
        """Of a whole split, or batch by batch, as --batch_eval_metrics hands them over."""
        parts.append(Answers.of(prediction.predictions, prediction.label_ids, job))
        if not compute_result:
            return {}
        trainer.answers = Answers.joined(parts)
        parts.clear()
        return trainer.answers.scores(job)

    if flags.data.pad_to_max_length:
        collator: Any = default_data_collator
    else:
        half = flags.training.fp16 or flags.training.bf16
        kind = DataCollatorForTokenClassification if job.task.tagged else DataCollatorWithPadding
        collator = kind(job.tokenizer, pad_to_multiple_of=8 if half else None)
    trainer = WholeSplits(
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
    if len(job.task.text_columns) == 2:
        trainer.card_example = {"text": "A text.", "text_pair": "A second text."}
    return trainer


def values_of(predictions: Any, labels: Labels) -> np.ndarray:
    """The data set's class numbers, or the numbers themselves, (rows,)."""
    logits = _logits(predictions, labels)
    return logits if labels.regression else labels.from_model(logits.argmax(axis=1))


def _logits(predictions: Any, labels: Labels) -> np.ndarray:
    logits = _array(predictions[0] if isinstance(predictions, tuple) else predictions)
    return logits.reshape(-1) if labels.regression else logits


def _array(values: Any) -> np.ndarray:
    return nested_numpify(values) if isinstance(values, torch.Tensor) else np.asarray(values)
