"""One run of a fine-tuning command, made ready."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from datasets import Dataset, IterableDataset
from transformers import PreTrainedTokenizerBase, TrainerCallback

from hf_rat.data.encoding import Labels
from hf_rat.data.task import HeldOut, Task


@dataclass
class TestSplit:
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
    prediction: list[TestSplit] = field(default_factory=list)
    named: bool = True
    card: dict[str, Any] = field(default_factory=dict)
    callbacks: list[TrainerCallback] = field(default_factory=list)
    beside: dict[str, list[dict[str, Any]]] = field(default_factory=dict)
