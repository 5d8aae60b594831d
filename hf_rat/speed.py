"""What the steps of a run cost beside plain ones, measured on the run's own batches."""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping
from itertools import islice
from typing import Any

import torch
from torch import Tensor

from hf_rat.regularization import Regularization
from hf_rat.regularizers.recipes import plain


def tokens_per_second(
    regularization: Regularization, batches: Iterable[Mapping[str, Any]], step: int, count: int = 3
) -> tuple[float, float]:
    """Tokens per second of one process in regularized steps, and in plain ones on the same batches in turn.

    A step is forward and backward, without the optimizer. Weights stay as they are, gradients are dropped, and random
    numbers go on as if nothing had been run.

    Args:
        regularization: opened on the model.
        batches: keyword arguments of the model with `input_ids`, labels included, on its device.
        step: the optimizer step that schedules are taken at.
        count: how many batches; the first one is run once more before, to warm up.

    Raises:
        ValueError: the engine is DeepSpeed, where every backward is an optimizer step.
    """
    engine, model = regularization.engine, regularization.unwrapped
    if engine.steps_in_backward:
        raise ValueError("DeepSpeed steps its optimizer on every backward: steps that change nothing cannot be timed")
    bare = Regularization(plain(), engine.called, accelerator=regularization.accelerator, run=regularization.run)
    on_gpu = next(model.parameters()).device.type == "cuda"
    seconds, tokens, training = [0.0, 0.0], 0, model.training
    model.train()
    with torch.random.fork_rng(devices=[torch.cuda.current_device()] if on_gpu else []):
        taken = list(islice(batches, count))
        for index, batch in enumerate([*taken[:1], *taken]):
            for which, method in enumerate((regularization, bare)):
                begun = _now(on_gpu)
                method.backward(batch, step=step)
                seconds[which] += (_now(on_gpu) - begun) * (index > 0)
                model.zero_grad()
            tokens += _tokens(batch) * (index > 0)
    model.train(training)
    return tokens / seconds[0], tokens / seconds[1]


def _now(on_gpu: bool) -> float:
    if on_gpu:
        torch.cuda.synchronize()
    return time.perf_counter()


def _tokens(batch: Mapping[str, Any]) -> int:
    mask = batch.get("attention_mask")
    return int(mask.sum()) if isinstance(mask, Tensor) else batch["input_ids"].numel()
