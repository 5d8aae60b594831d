"""An LSTM that reads vectors instead of words, and the rows that it reads, as a job of the commands.

The model is the companion `lstm` with what it reads given as `inputs_embeds`: its table of word vectors has one row,
which nothing reads and nothing trains.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from typing import Any

import numpy as np
import torch
from datasets import Array2D, Dataset, Features, Value
from torch import nn
from transformers.trainer_utils import SchedulerType

from hf_rat.data.encoding import Labels
from hf_rat.data.task import Task
from hf_rat.finetuning.flags import DataTrainingArguments, Flags, ModelArguments, build
from hf_rat.finetuning.job import Job
from hf_rat.finetuning.pretrained import number_labels
from hf_rat.finetuning.sequence_flags import SequenceArguments
from hf_rat.models import RNNConfig, RNNForSequenceClassification
from hf_rat.trainer.training_args import RegularizedTrainingArguments


def sequence_flags(given: Mapping[str, Any], defaults: Mapping[str, Any]) -> Flags:
    """The Trainer's flags as a run needs them, with nothing to pad and nothing to tokenize.

    Args:
        given: the flags that are set.
        defaults: other defaults than the Trainer's.

    Raises:
        ValueError: a value is not acceptable, or nothing is to be trained.
    """
    training = build(RegularizedTrainingArguments, given, defaults)
    if not training.do_train:
        raise ValueError("--do_train is missing: the network is trained from scratch")
    data = DataTrainingArguments(pad_to_max_length=True)
    return Flags(ModelArguments(), data, training, frozenset(given))


def sequence_rows(vectors: np.ndarray, labels: np.ndarray) -> Dataset:
    """Rows as the model is fed them.

    Args:
        vectors: float32 (rows, time, width).
        labels: int64 (rows,).
    """
    shape = vectors.shape[1:]
    features = Features({"inputs_embeds": Array2D(shape, "float32"), "label": Value("int64")})
    return Dataset.from_dict({"inputs_embeds": vectors, "label": labels}, features=features).with_format("torch")


def sequence_job(task: Task, width: int, own: SequenceArguments, forget_bias: float | None, **described: Any) -> Job:
    """A new LSTM for a task, without rows yet.

    Args:
        task: names the classes.
        width: numbers that are read at each step.
        own: units and dropouts.
        forget_bias: as of `RNNConfig`.
        described: fields that the model's configuration keeps, so that a checkpoint says what it reads.

    Raises:
        ValueError: a dropout rate outside its range, or a dropout that one LSTM layer has not.
    """
    labels = Labels.of_task(task)
    try:
        config = RNNConfig(
            vocab_size=1,
            embedding_size=width,
            hidden_size=own.hidden_size,
            classifier_dropout=0.0,
            recurrent_dropouts=own.recurrent_dropouts(),
            forget_bias=forget_bias,
            **{"num_labels": len(labels.names), **described},
        )
    except ValueError as error:
        raise ValueError(f"--dropout_kind {own.dropout_kind!r}: {error}") from None
    labels = number_labels(config, labels)
    model: Any = RNNForSequenceClassification(config)
    model.get_input_embeddings().weight.requires_grad_(False)
    return Job(task, labels, model, None, named=False)  # type: ignore[arg-type]  # there are no words


@torch.no_grad()
def begin_orthogonally(model: nn.Module) -> None:
    """Make the recurrent weights of each gate of each recurrent layer orthogonal."""
    for layer in model.modules():
        if isinstance(layer, nn.RNNBase):
            for name, weight in layer.named_parameters(recurse=False):
                if name.startswith("weight_hh"):
                    for gate in weight.split(layer.hidden_size):
                        nn.init.orthogonal_(gate)


@torch.no_grad()
def begin_uniformly(model: nn.Module, bound: float, forget_bias: float = 0.0) -> None:
    """Draw every weight and bias from U(-bound, bound).

    Args:
        model: what of it is frozen stays as it is.
        bound: of the draws.
        forget_bias: what is added to the biases of an LSTM's forget gates.
    """
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.uniform_(-bound, bound)
    for layer in model.modules():
        if isinstance(layer, nn.LSTM):
            for name, bias in layer.named_parameters(recurse=False):
                if name.startswith("bias_ih"):
                    bias[layer.hidden_size : 2 * layer.hidden_size] += forget_bias


def decay_at_the_end(training: RegularizedTrainingArguments, rows: int, share: float, given: Collection[str]) -> None:
    """Let the learning rate fall to zero, on a line, over the last share of the steps, unless flags say otherwise."""
    if "lr_scheduler_type" in given or "lr_scheduler_kwargs" in given:
        return
    batches = math.ceil(rows / (training.train_batch_size * training.world_size))
    steps = training.max_steps
    if steps < 1:
        steps = math.ceil(training.num_train_epochs * math.ceil(batches / training.gradient_accumulation_steps))
    training.lr_scheduler_type = SchedulerType.WARMUP_STABLE_DECAY
    training.lr_scheduler_kwargs = {"num_decay_steps": math.ceil(share * steps), "decay_type": "linear"}
