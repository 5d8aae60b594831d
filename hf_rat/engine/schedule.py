"""When the parts of a regularizer are on in a run of known length, and what its steps cost."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from typing import Any

from torch import Tensor

from hf_rat.engine.engine import Engine
from hf_rat.engine.loss_fall import LossFall
from hf_rat.regularizers.schedules import has_shares, phases, schedules, settled, thresholds, timed
from hf_rat.regularizers.terms import Term


class Schedule:
    """A regularizer whose schedules are in steps.

    Args:
        regularizer: the term.
        total: optimizer steps of the whole run; None where nobody knows.

    Attributes:
        term: the same, with every share of the run as a whole number of steps.
        fall: of the task loss, where something waits for it.

    Raises:
        ValueError: `total` is no whole number above 0; the regularizer needs it; or is never on within the run.
    """

    def __init__(self, regularizer: Term, total: int | None) -> None:
        if total is not None and not (isinstance(total, int) and not isinstance(total, bool) and total > 0):
            raise ValueError(f"total_steps={total!r} must be the number of optimizer steps of the run, at least 1")
        self._regularizer, self.total = regularizer, total
        self.term = timed(regularizer, total)
        self.fall: LossFall | None = None
        self._settled: tuple[float, Term] | None = None
        if found := thresholds(regularizer):
            self.watch_loss(min(found), repr(regularizer))

    def watch_loss(self, below: float, because: str) -> None:
        """Follow the task loss from now on, until it is below this share of what it was at first.

        Args:
            below: the share.
            because: who waits for it.

        Raises:
            ValueError: nobody knows the length of the run.
        """
        if self.total is None:
            raise ValueError(
                f"below= of {because} compares tenths of the run, and nobody said how many optimizer steps it has: "
                "give Regularization(..., total_steps=), or a Trainer max_steps (until it trains)"
            )
        self.fall = self.fall or LossFall(self.total, below, because)
        self.fall.until = min(self.fall.until, below)

    @property
    def now(self) -> Term:
        """What is run now: a part that waits is plain training until the task loss has fallen."""
        if self.fall is None:
            return self.term
        # It changes once in a tenth of the run, and each micro-batch reads it several times.
        if self._settled is None or self._settled[0] != self.fall.fallen:
            self._settled = self.fall.fallen, settled(self.term, self.fall.fallen)
        return self._settled[1]

    def see(self, losses: Mapping[str, Tensor], step: int) -> None:
        """Take the named losses of a micro-batch."""
        if self.fall is not None:
            self.fall.add(losses, step)

    def end_step(self, engine: Engine) -> None:
        """After each optimizer step. All processes call this together."""
        if self.fall is not None:
            self.fall.end_step(engine)

    @property
    def phases(self) -> list[tuple[int | None, int]]:
        """(a step, how many steps cost what that one does); (None, 1) where nobody knows, or all are alike."""
        if self.total is None or not any(schedules(self.term)):
            return [(None, 1)]
        return [*phases(self.term, self.total)]

    def state_dict(self) -> dict[str, Any]:
        """What a checkpoint keeps, as plain numbers."""
        return {"total_steps": self.total, "loss_fall": self.fall and self.fall.state_dict()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from `state_dict()`; warn that shares are of another number of steps now."""
        before, fall = state.get("total_steps"), state.get("loss_fall")
        if self.fall is not None and fall is not None:
            self.fall.load_state_dict(fall)
        if before is not None and before != self.total and has_shares(self._regularizer):
            warnings.warn(
                f"the checkpoint is of a run of {before} steps, and this one has {self.total}: the shares in "
                f"{self._regularizer!r} are other steps now",
                stacklevel=3,
            )
