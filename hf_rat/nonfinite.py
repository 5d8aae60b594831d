"""Losses that are not finite are never back-propagated, and all processes decide that together."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor


class NonfiniteGuard:
    """Keeps what is not finite away from the weights, and counts the optimizer steps in which there was any.

    Args:
        everywhere: (n,) bool -> (n,) bool, what holds on every process.
    """

    def __init__(self, everywhere: Callable[[Tensor], Tensor]) -> None:
        self._everywhere = everywhere
        self.steps = 0
        self._last = -1

    def kept(self, losses: dict[str, Tensor], step: int) -> dict[str, Tensor]:
        """The losses that are finite on every process: others are never back-propagated, as 0 x NaN is NaN."""
        if not losses:
            return losses
        finite = torch.stack([torch.isfinite(value.detach()).all() for value in losses.values()])
        kept = self._everywhere(finite).tolist()
        if all(kept):
            return losses
        self.count(step)
        return {name: value for (name, value), keep in zip(losses.items(), kept, strict=True) if keep}

    def count(self, step: int) -> None:
        """Count optimizer step `step` (once)."""
        if step != self._last:
            self._last = step
            self.steps += 1
