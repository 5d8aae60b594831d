"""The parts of the loss, averaged as the Trainer averages `loss`."""

from __future__ import annotations

import torch
from accelerate import Accelerator
from torch import Tensor

from hf_rat.regularizers.terms import Losses, accumulate


class Components:
    """Sums named losses between two logs.

    Args:
        step: optimizer steps made so far.
    """

    def __init__(self, step: int = 0) -> None:
        self._sums: dict[str, Tensor] = {}
        self._totals: dict[str, float] = {}
        self._begun_at = self._logged_at = step

    def add(self, named: Losses, accumulation: int) -> None:
        """The detached losses of one of `accumulation` micro-batches."""
        accumulate(self._sums, {name: value / accumulation for name, value in named.items()})

    def take(self, step: int, accelerator: Accelerator) -> dict[str, float]:
        """`loss_<name>`: the mean over the steps since the last call, and over the processes."""
        steps, self._logged_at = step - self._logged_at, step
        names = sorted(self._sums)
        if not names or steps == 0:
            return {}
        sums = torch.stack([self._sums[name] for name in names])
        means = accelerator.reduce(sums, reduction="mean") / steps
        self._sums = {}
        taken = dict(zip(names, means.tolist(), strict=True))
        for name, value in taken.items():
            self._totals[name] = self._totals.get(name, 0.0) + value * steps
        return {f"loss_{name}": value for name, value in taken.items()}

    def over_the_run(self, step: int, accelerator: Accelerator) -> dict[str, float]:
        """`train_loss_<name>`, the means over all steps of this run: they sum to the Trainer's `train_loss`."""
        self.take(step, accelerator)
        steps = max(step - self._begun_at, 1)
        return {f"train_loss_{name}": total / steps for name, total in self._totals.items()}
