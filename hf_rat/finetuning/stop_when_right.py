"""Stop a training whose task is solved."""

from __future__ import annotations

from typing import Any

import torch
from datasets import Dataset
from transformers import TrainerCallback


class StopWhenRight(TrainerCallback):
    """Stops when the rows that are evaluated and those that are trained on are answered rightly.

    Training rows are scored once the others are right, and at the end, as `eval_train_accuracy`: as they are trained
    on, under dropout masks, so that a dropout that spoils evaluation alone shows in the two numbers.

    Args:
        rows: that are trained on, in the format of torch, with `inputs_embeds` and `label`.
        enough: accuracy on both, 0 to 1, at which training stops.
        batch_size: rows at a time.
    """

    def __init__(self, rows: Dataset, enough: float, batch_size: int) -> None:
        self.rows, self.enough, self.batch_size = rows, enough, batch_size

    def on_evaluate(
        self, args: Any, state: Any, control: Any, model: Any = None, metrics: Any = None, **kwargs: Any
    ) -> None:
        right = metrics["eval_accuracy"] >= self.enough
        if right or state.global_step >= state.max_steps:
            metrics["eval_train_accuracy"] = train_accuracy(model, self.rows, self.batch_size)
            if right and metrics["eval_train_accuracy"] >= self.enough:
                control.should_training_stop = True


@torch.no_grad()
def train_accuracy(model: Any, rows: Dataset, batch_size: int) -> float:
    """The share of rows that a model answers rightly in training mode, 0 to 1. Leaves no trace."""
    device, training, right = next(model.parameters()).device, model.training, 0
    model.train()
    try:
        with torch.random.fork_rng():
            for batch in rows.iter(batch_size):
                logits = model(inputs_embeds=batch["inputs_embeds"].to(device)).logits
                right += int((logits.argmax(-1).cpu() == batch["label"]).sum())
    finally:
        model.train(training)
    return right / len(rows)
