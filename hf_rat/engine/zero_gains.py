"""A regularizer that teaches nothing is told: a gain that stays exactly zero, a model in evaluation mode."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from hf_rat.passes.dropout import RandomState
from hf_rat.passes.execution import Execution, Pass
from hf_rat.regularizers.perturbations import Flip, Redrawn
from hf_rat.regularizers.terms import Consistency, Smoothness, Term, all_terms

STEPS = 3
"""Optimizer steps after which a gain that was always zero is told."""

_COMPARED = ("consistency", "smoothness", "proximal")


class ZeroGains:
    """Watches what a regularizer adds, and warns once, in the main process, if that is nothing.

    Args:
        regularizer: the term.
        model: without wrappers.
    """

    def __init__(self, regularizer: Term, model: nn.Module) -> None:
        self._regularizer, self._model = regularizer, model
        self._seen: dict[str, tuple[float, Tensor | float]] = {}
        self._compares = any(map(_compares_dropout, all_terms(regularizer)))
        self._draws: bool | None = None
        self.told = False

    def begin(self) -> None:
        """Before a training pass: warn of a model in evaluation mode."""
        if not (self.told or self._model.training):
            self.tell(
                f"{type(self._model).__name__} is trained in evaluation mode, where its dropout is off: call "
                "model.train() before the loop (from_pretrained returns a model in evaluation mode)"
            )

    def watch(self, execution: Execution) -> Execution:
        """The same for the first batch: its first pass is watched for whether it draws random numbers."""
        if self._draws is not None:
            return execution

        def watched(inputs: dict[str, Any]) -> Pass:
            if self._draws is not None or not self._model.training:  # a look in evaluation draws nothing
                return execution.run(inputs)
            device = next((x.device for x in inputs.values() if isinstance(x, Tensor)), torch.device("cpu"))
            before = RandomState(device)
            result = execution.run(inputs)
            self._draws = RandomState(device) != before
            return result

        return replace(execution, run=watched)

    def see(self, losses: Mapping[str, Tensor], accumulation: int) -> None:
        """Look at the losses of a micro-batch; they are read, which a GPU must wait for, once after `STEPS` steps."""
        if self._compares and self._draws is False and not self.told:
            self.tell(
                f"{type(self._model).__name__} has no dropout: the passes that {self._regularizer!r} compares are "
                "identical, and their divergence is zero, as a pass over the first batch drew no random number (with "
                "a dropout schedule that starts at 0 it may later)"
            )
        if self.told:
            return
        due = []
        for name, gain in _gains(losses).items():
            steps, largest = self._seen.get(name, (0.0, 0.0))
            if steps < STEPS:
                largest = torch.maximum(gain.abs(), torch.as_tensor(largest, device=gain.device, dtype=gain.dtype))
                steps = round(steps + 1 / accumulation, 6)
                self._seen[name] = steps, largest
                due += [name] if steps >= STEPS else []
        if zero := [name for name in due if float(self._seen[name][1]) == 0.0]:
            self.tell(
                f"{', '.join(zero)} of {self._regularizer!r} was exactly 0 in the first {STEPS} steps and teaches "
                "nothing: the model may be in evaluation mode, have no dropout or a dropout schedule that starts at "
                "0, epsilon may be 0, or the forward may not use the site"
            )

    def tell(self, message: str) -> None:
        """Warn, in the main process, and no more after that."""
        self.told = True
        distributed = torch.distributed.is_available() and torch.distributed.is_initialized()
        if not distributed or torch.distributed.get_rank() == 0:
            warnings.warn(message, stacklevel=4)


def _gains(losses: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """What each regularizing loss is above its least value."""
    gains = {name: value.detach() for name, value in losses.items() if name.endswith(_COMPARED)}
    if "task" in losses and "adversarial_task" in losses:
        gains["adversarial_task - task"] = (losses["adversarial_task"] - losses["task"]).detach()
    return gains


def _compares_dropout(term: Term) -> bool:
    """Whether the passes that a term compares differ by their dropout masks alone."""
    at = term.perturb
    return isinstance(term, Consistency) or (
        isinstance(term, Smoothness)
        and (isinstance(at, Redrawn) or (isinstance(at, Flip) and at.start_mask == "base"))
    )
