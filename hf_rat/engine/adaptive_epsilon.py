"""The controller of an epsilon that is found: it holds the rise of the task loss near a target."""

from __future__ import annotations

import math
import warnings
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from hf_rat.engine.engine import Engine
from hf_rat.engine.weighting import weigh
from hf_rat.regularizers.adaptive import Adaptive
from hf_rat.regularizers.terms import Term, all_terms

FIRST, LEAST = 0.01, 1e-4
"""Shares of the epsilon that was given: where it begins, and at least."""

PACE = 0.02
"""The most by which the logarithm of epsilon moves in an optimizer step: fifty steps make it e times as large.

Slower than a model from scratch learns. Before it has learned anything its loss rises by next to nothing, however far
it is perturbed, and an epsilon that had grown by then would keep it from learning.
"""


class AdaptiveEpsilon:
    """Moves each adaptive epsilon of a regularizer, once per optimizer step.

    The rise of a step is (sum L(x + r) - sum L(x)) / sum L(x), over its micro-batches and all processes. After a step,
    log epsilon moves by PACE (1 - rise / target), at most by PACE either way, between LEAST and 1 times what was
    given. Perturbations that are equal have one epsilon.

    Args:
        regularizer: the term.
        engine: sums over processes.
    """

    def __init__(self, regularizer: Term, engine: Engine) -> None:
        found = (term.perturb for term in all_terms(regularizer))
        self._shares = {at: FIRST for at in found if isinstance(at, Adaptive)}
        self._rises: dict[Adaptive, float] = {}
        self._engine = engine
        self._told = False
        self.sums: dict[Adaptive, Tensor] = {}
        """(2,), the sums of L(x) and L(x + r) in the micro-batches of the step so far."""
        self._step: int | None = None

    def share_of(self, at: Adaptive) -> float:
        """How much of its size a perturbation has now, in (0, 1]."""
        return self._shares[at]

    def add(self, rises: Sequence[tuple[Adaptive, Tensor]], weight: Tensor | None, step: int) -> None:
        """Take what a micro-batch of optimizer step `step` has seen.

        Args:
            rises: (perturbation, the mean L(x) and L(x + r)).
            weight: of the micro-batch, as of its losses.

        Raises:
            ValueError: the step before was not ended by `update`.
        """
        if rises and self.sums and step != self._step:
            raise ValueError(
                f"step {step} begins, and after_step() was not called after step {self._step}: it moves the epsilon "
                "that target= asks for; call it after each optimizer step"
            )
        for at, losses in rises:
            own = weigh({"": losses}, weight)[""]
            self.sums[at] = self.sums[at] + own if at in self.sums else own
            self._step = step

    def update(self, finite: bool) -> None:
        """End an optimizer step. All processes call this together.

        Args:
            finite: all losses and gradients of the step were.
        """
        sums, self.sums = self.sums, {}
        if not self._shares:
            return
        device = next(self._engine.unwrapped.parameters()).device
        nothing = torch.zeros(2, device=device)
        table = torch.stack([sums.get(at, nothing).to(device, torch.float32) for at in self._shares])
        for at, (here, there) in zip(self._shares, self._engine.sum(table).tolist(), strict=True):
            if not finite or not math.isfinite(here) or not math.isfinite(there) or here == there == 0:
                continue
            if here <= 0:
                self._tell_of_no_share(here)
                continue
            self._rises[at] = (there - here) / here
            move = PACE * max(-1.0, min(1.0, 1 - self._rises[at] / at.target))
            self._shares[at] = min(1.0, max(LEAST, self._shares[at] * math.exp(move)))

    def logs(self) -> dict[str, float]:
        """`reg_epsilon`, and `reg_rise` in the last step that had one; of a second one `reg_epsilon_2` and so on."""
        logged = {}
        for number, (at, share) in enumerate(self._shares.items(), 1):
            end = "" if number == 1 else f"_{number}"
            radius = at.ball.radius
            logged[f"reg_epsilon{end}"] = share * (max(radius) if isinstance(radius, tuple) else radius)
            if at in self._rises:
                logged[f"reg_rise{end}"] = self._rises[at]
        return logged

    def state_dict(self) -> dict[str, dict[str, float | None]]:
        """What a checkpoint must keep."""
        return {repr(at): {"share": share, "rise": self._rises.get(at)} for at, share in self._shares.items()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from `state_dict()`; what it does not have begins small, and that is told."""
        for at in self._shares:
            kept = state.get(repr(at))
            if kept is not None:
                self._shares[at] = float(kept["share"])
                self._rises |= {} if kept["rise"] is None else {at: float(kept["rise"])}
            else:
                warnings.warn(
                    f"the checkpoint has no epsilon for target={at.target!r}: it begins at {FIRST:g} times what is "
                    "given, as in a new run",
                    stacklevel=2,
                )

    def _tell_of_no_share(self, loss: float) -> None:
        if not self._told:
            self._told = True
            warnings.warn(
                f"the task loss is {loss:g}, and a rise is a share of it: epsilon, which target= asks for, does not "
                "move in such steps",
                stacklevel=2,
            )
