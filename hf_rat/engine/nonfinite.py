"""Losses that are not finite are never back-propagated, nor do gradients that are not reach the optimizer.

All processes decide that together.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor


class NonfiniteGuard:
    """Keeps what is not finite away from the weights, and counts the optimizer steps in which there was any.

    Args:
        everywhere: (n,) bool -> (n,) bool, what holds on every process.
    """

    def __init__(self, everywhere: Callable[[Tensor], Tensor]) -> None:
        self._everywhere = everywhere
        self.steps = 0
        self._in_this_step = False
        self._last = -1
        self._told: set[str] = set()

    def drop_losses(self, losses: dict[str, Tensor], step: int) -> dict[str, Tensor]:
        """The losses that are finite on every process: others are never back-propagated, as 0 x NaN is NaN."""
        if not losses:
            return losses
        finite = torch.stack([torch.isfinite(value.detach()).all() for value in losses.values()])
        kept = self._everywhere(finite).tolist()
        if all(kept):
            return losses
        dropped = {name: value for (name, value), keep in zip(losses.items(), kept, strict=True) if not keep}
        for name, value in dropped.items():
            self._tell(f"the loss {name}", f"it is left out of step {step} (here it is {value.detach().item():g})")
        self.count(step)
        return {name: value for name, value in losses.items() if name not in dropped}

    @torch.no_grad()
    def drop_gradients(self, model: nn.Module, step: int, decided: bool | None = None) -> None:
        """Take all gradients of `model` away if any is not finite, so that the optimizer changes nothing.

        Args:
            model: with the gradients of optimizer step `step`.
            step: the optimizer step.
            decided: whether they are finite on every process; None looks.
        """
        if decided is None:
            gradients = [p.grad for p in model.parameters() if p.grad is not None]
            if not gradients:
                return
            # One number of each: a sum over what is not finite is not finite.
            sums = [(g.to_local() if isinstance(g, DTensor) else g).float().sum() for g in gradients]
            decided = bool(self._everywhere(torch.isfinite(torch.stack(sums)).all().reshape(1)))
        if not decided:
            for parameter in model.parameters():
                parameter.grad = None
            self.count(step)
            self._tell("a gradient", f"step {step} is skipped")

    def count(self, step: int) -> None:
        """Count optimizer step `step` (once)."""
        self._in_this_step = True
        if step != self._last:
            self._last = step
            self.steps += 1

    def end_step(self) -> bool:
        """Whether all of an optimizer step was finite, which is over."""
        finite, self._in_this_step = not self._in_this_step, False
        return finite

    def _tell(self, what: str, happened: str) -> None:
        """Warn of each kind of fault once, on the first process."""
        if what in self._told:
            return
        self._told.add(what)
        if not torch.distributed.is_initialized() or torch.distributed.get_rank() == 0:
            warnings.warn(f"{what} is not finite: {happened}; nonfinite_steps counts these steps", stacklevel=2)
