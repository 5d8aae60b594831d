"""The trainer of the commands: whole splits are scored, by the scores of their task."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from transformers import DataCollatorWithPadding, EvalPrediction, default_data_collator
from transformers.trainer_pt_utils import nested_numpify

from hf_rat.data.encoding import Labels
from hf_rat.data.metrics import scores_of
from hf_rat.finetuning.flags import Flags
from hf_rat.finetuning.job import Job
from hf_rat.trainer.trainer import RegularizedTrainer


class WholeSplits(RegularizedTrainer):
    """`--dataloader_drop_last` is about training: every row is scored and answered."""

    def get_eval_dataloader(self, eval_dataset: Any = None) -> Any:
        with self._keeping_last():
            return super().get_eval_dataloader(eval_dataset)

    def get_test_dataloader(self, test_dataset: Any) -> Any:
        with self._keeping_last():
            return super().get_test_dataloader(test_dataset)

    @contextmanager
    def _keeping_last(self) -> Iterator[None]:
        asked, self.args.dataloader_drop_last = self.args.dataloader_drop_last, False
        try:
            yield
        finally:
            self.args.dataloader_drop_last = asked


def build_trainer(flags: Flags, job: Job) -> RegularizedTrainer:
    """The trainer of a job, with the scores of its task."""
    parts: list[tuple[np.ndarray, np.ndarray]] = []

    def scores(prediction: EvalPrediction, compute_result: bool = True) -> dict[str, float]:
        """Of a whole split, or batch by batch, as --batch_eval_metrics hands them over."""
        references = _array(prediction.label_ids)
        if not job.labels.regression:
            references = job.labels.from_model(references)
        parts.append((values_of(prediction.predictions, job.labels), references.reshape(-1)))
        if not compute_result:
            return {}
        predicted, expected = (np.concatenate(column) for column in zip(*parts, strict=True))
        parts.clear()
        return scores_of(job.task.metrics, predicted, expected)

    if flags.data.pad_to_max_length:
        collator: Any = default_data_collator
    else:
        half = flags.training.fp16 or flags.training.bf16
        collator = DataCollatorWithPadding(job.tokenizer, pad_to_multiple_of=8 if half else None)
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


def values_of(logits: Any, labels: Labels) -> np.ndarray:
    """The data set's class numbers, or the numbers themselves, (rows,)."""
    logits = _array(logits[0] if isinstance(logits, tuple) else logits)
    return logits.reshape(-1) if labels.regression else labels.from_model(logits.argmax(axis=1))


def _array(values: Any) -> np.ndarray:
    return nested_numpify(values) if isinstance(values, torch.Tensor) else np.asarray(values)
