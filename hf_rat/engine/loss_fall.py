"""How far a run's task loss has fallen, which tells whether its model has learned its data."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from hf_rat.engine.engine import Engine

TENTHS = 10


class LossFall:
    """The mean task loss of each tenth of a run, beside that of the first.

    A tenth, since the loss of one micro-batch says little, and the first tenth rather than the first step, since what
    a head predicts before any training, as of a regression, may be anything.

    Args:
        steps: optimizer steps of the whole run.
        until: what `fallen` is to fall below; then the losses are read no more, which a GPU waits for in each step.
        because: who asks, for errors.

    Attributes:
        fallen: the least mean loss of a tenth so far, over that of the first; 1 in the first.
    """

    def __init__(self, steps: int, until: float, because: str) -> None:
        self._steps, self.until, self._because = steps, until, because
        self._first: float | None = None
        self._sums = [0.0, 0.0]
        self._seen: Tensor | None = None
        self._step = 0
        self.fallen = 1.0

    def add(self, losses: Mapping[str, Tensor], step: int) -> None:
        """Take the named losses of a micro-batch; the task loss among them may be that of a perturbed pass (`sam`).

        Raises:
            ValueError: the step before was not ended.
        """
        if self.fallen < self.until:
            return
        if self._seen is not None and step != self._step:
            raise ValueError(
                f"step {step} begins, and after_step() was not called after step {self._step}: {self._because} waits "
                "until the task loss has fallen; call it after each optimizer step"
            )
        name = "task" if "task" in losses else next((name for name in losses if name.endswith("_task")), None)
        if name is None:
            return
        loss = losses[name].detach().float()
        seen = torch.stack([loss.nan_to_num(0.0, 0.0, 0.0), loss.isfinite().to(loss)])
        self._seen, self._step = seen if self._seen is None else self._seen + seen, step

    def end_step(self, engine: Engine) -> None:
        """After an optimizer step. All processes call this together."""
        if self._seen is None:
            return
        seen, self._seen = engine.sum(self._seen).tolist(), None
        self._sums = [a + b for a, b in zip(self._sums, seen, strict=True)]
        if TENTHS * (self._step + 1) // self._steps == TENTHS * self._step // self._steps:
            return
        (total, count), self._sums = self._sums, [0.0, 0.0]
        if not count:
            return
        if self._first is None:
            self._first = total / count
        elif self._first > 0:  # a share of a loss that may be negative tells nothing
            self.fallen = min(self.fallen, total / count / self._first)

    def state_dict(self) -> dict[str, Any]:
        """What a checkpoint keeps, as plain numbers: what was summed so far."""
        return {"first": self._first, "fallen": self.fallen, "sums": self._sums}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from `state_dict()`."""
        self._first, self.fallen, self._sums = state["first"], state["fallen"], list(state["sums"])
