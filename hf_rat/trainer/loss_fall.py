"""How far a run's task loss has fallen, which tells whether its model has learned its data."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor

TENTHS = 10


class LossFall:
    """The mean task loss of each tenth of a run, beside that of the first.

    A tenth, since the loss of one micro-batch says little, and the first tenth rather than the first step, since what
    a head predicts before any training, as of a regression, may be anything.
    """

    def __init__(self) -> None:
        self._first: float | None = None
        self._sums = [0.0, 0.0]
        self._step: Tensor | None = None
        self.share: float | None = None
        """The mean loss of the tenth that ended last, over that of the first; None while no second one has ended."""

    def add(self, losses: Mapping[str, Tensor]) -> None:
        """Take the named losses of a micro-batch; the task loss among them may be that of a perturbed pass (`sam`)."""
        name = "task" if "task" in losses else next((name for name in losses if name.endswith("_task")), None)
        if name is None:
            return
        loss = losses[name].detach().float()
        seen = torch.stack([loss.nan_to_num(0.0, 0.0, 0.0), loss.isfinite().to(loss)])
        self._step = seen if self._step is None else self._step + seen

    def end_step(self, step: int, steps: int, accelerator: Accelerator) -> None:
        """After optimizer step `step`, counted from 1, of `steps`. All processes call this together."""
        seen, self._step = self._step, None
        if seen is not None:
            self._sums = [a + b for a, b in zip(self._sums, accelerator.reduce(seen).tolist(), strict=True)]
        if TENTHS * step // steps == TENTHS * (step - 1) // steps:
            return
        (total, count), self._sums = self._sums, [0.0, 0.0]
        if not count:
            return
        if self._first is None:
            self._first = total / count
        elif self._first > 0:  # a share of a loss that may be negative tells nothing
            self.share = total / count / self._first

    def state_dict(self) -> dict[str, Any]:
        """What a checkpoint keeps, as plain numbers: what was summed so far."""
        return {"first": self._first, "share": self.share, "sums": self._sums}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from `state_dict()`."""
        self._first, self.share, self._sums = state["first"], state["share"], list(state["sums"])
