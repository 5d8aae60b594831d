"""What the steps of a run cost beside plain ones, measured on the run's own batches."""

from __future__ import annotations

import logging
import random
import time
from collections.abc import Iterable, Mapping
from itertools import islice
from typing import Any

import numpy as np
import torch
from torch import Tensor

from hf_rat.engine.cost import rehearse
from hf_rat.engine.regularization import Regularization
from hf_rat.regularizers.algebra import FULL_STRENGTH
from hf_rat.regularizers.recipes import plain
from hf_rat.trainer.announcement import costs_of_run

logger = logging.getLogger(__name__)


def tokens_per_second(
    regularization: Regularization, batches: Iterable[Mapping[str, Any]], step: int, count: int = 3
) -> tuple[float, float]:
    """Tokens per second of one process in regularized steps, and in plain ones on the same batches in turn.

    A step is forward and backward, without the optimizer. Weights and buffers stay as they are, gradients are dropped,
    and random numbers of torch, numpy and Python go on as if nothing had been run.

    Args:
        regularization: opened on the model.
        batches: keyword arguments of the model with `input_ids`, labels included, on its device.
        step: the optimizer step that schedules are taken at; `FULL_STRENGTH` has them all on.
        count: how many batches; the first one is run once more before, to warm up.

    Raises:
        ValueError: the engine is DeepSpeed, where every backward is an optimizer step.
    """
    engine, model = regularization.engine, regularization.unwrapped
    if engine.steps_in_backward:
        raise ValueError("DeepSpeed steps its optimizer on every backward: steps that change nothing cannot be timed")
    bare = Regularization(plain(), engine.model, accelerator=regularization.accelerator, run=regularization.run)
    on_gpu = next(model.parameters()).device.type == "cuda"
    seconds, tokens, training = [0.0, 0.0], 0, model.training
    buffers = {name: buffer.detach().clone() for name, buffer in model.named_buffers()}
    rises, fall = dict(regularization.adaptive.sums), regularization.schedule.fall
    numbers, more_numbers = random.getstate(), np.random.get_state()
    model.train()
    regularization.schedule.fall = None  # what waits is on
    try:
        with torch.random.fork_rng(devices=[torch.cuda.current_device()] if on_gpu else []):
            taken = list(islice(batches, count))
            for index, batch in enumerate([*taken[:1], *taken]):
                for which, method in enumerate((regularization, bare)):
                    begun = _now(on_gpu)
                    method.begin_step([batch], step=step)
                    method.backward(batch, step=step)
                    seconds[which] += (_now(on_gpu) - begun) * (index > 0)
                    model.zero_grad()
                tokens += _tokens(batch) * (index > 0)
    finally:
        model.zero_grad()
        regularization.adaptive.sums, regularization.schedule.fall = rises, fall
        model.train(training)
        random.setstate(numbers)
        np.random.set_state(more_numbers)
        with torch.no_grad():
            for name, buffer in model.named_buffers():
                buffer.copy_(buffers[name])
    return tokens / seconds[0], tokens / seconds[1]


def step_price(trainer: Any) -> dict[str, float]:
    """What a step cost in a run that has ended, as metrics: empty where it is not asked for or cannot be timed.

    `train_tokens_per_second` of regularized steps, `train_plain_tokens_per_second` of plain ones, and
    `train_time_factor`, how many times as long as plain ones the steps of the run take: what a regularized one takes,
    and of one in which a part of the regularizer is off, as much less as its passes are fewer.

    Args:
        trainer: a `RegularizedTrainer` whose `train()` is about to return. With `no_price` in its arguments, with bare
            TrainingArguments, in a search, with `plain`, under DeepSpeed, for batches without `input_ids`, and for
            trainers of other packages, nothing is timed.
    """
    regularization, searching = trainer.regularization, trainer.hp_search_backend is not None
    if getattr(trainer.args, "no_price", True) or searching or regularization.is_plain:
        return {}
    if not trainer.host.is_timed or regularization.engine.steps_in_backward:
        return {}
    # Nothing that goes wrong here may cost a training that is done.
    try:
        with torch.random.fork_rng():
            loader = trainer.get_train_dataloader()
            batches = (trainer._prepare_inputs(batch) for batch in loader)
            own, plain_steps = tokens_per_second(regularization, batches, FULL_STRENGTH)
    except Exception as error:
        logger.warning("The price of a step could not be timed: %s: %s", type(error).__name__, error)
        return {}
    return {
        "train_tokens_per_second": own,
        "train_plain_tokens_per_second": plain_steps,
        "train_time_factor": 1 + (plain_steps / own - 1) * share_of_price(regularization),
    }


def share_of_price(regularization: Regularization) -> float:
    """What the steps of a run cost more than plain ones, on average, against a step in which all is on."""
    costs = costs_of_run(regularization)
    mean = sum(cost.time * count for cost, count in costs.items()) / sum(costs.values())
    bare, full = rehearse(plain(), FULL_STRENGTH).time, regularization.cost().time
    return (mean - bare) / (full - bare) if full != bare else 1.0


def _now(on_gpu: bool) -> float:
    if on_gpu:
        torch.cuda.synchronize()
    return time.perf_counter()


def _tokens(batch: Mapping[str, Any]) -> int:
    mask = batch.get("attention_mask")
    return int(mask.sum()) if isinstance(mask, Tensor) else batch["input_ids"].numel()
