"""A perturbation as large as makes the task loss rise by a given share, which is found while training."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from hf_rat.passes.plan import ONE_PASS, Plan
from hf_rat.passes.point import Point
from hf_rat.regularizers.balls import L2, Linf
from hf_rat.regularizers.perturbations import Ascent, Climb, Gradient, Perturbation


@dataclass(frozen=True)
class Adaptive(Perturbation):
    """`at`, made smaller: a share of its size, which whoever runs the passes moves after each optimizer step.

    Args:
        at: the perturbation at its largest, in the unit "relative": bounded by each example's own length.
        target: what the mean relative rise of the task loss, (L(x + r) - L(x)) / L(x), is held near.

    Raises:
        ValueError: another unit.
    """

    at: Gradient | Ascent
    target: float

    def __post_init__(self) -> None:
        if self.ball.unit != "relative":
            raise ValueError(
                f'target={self.target!r} with unit="{self.ball.unit}": epsilon is then found, at most as large as it '
                'is given, as a share of the text\'s own length; add unit="relative" (and an epsilon such as 0.5)'
            )

    @property
    def ball(self) -> L2 | Linf:
        return self.at.ball

    @property
    def site(self) -> str:
        return self.at.site

    @property
    def uses_clean_slope(self) -> bool:
        return self.at.uses_clean_slope

    @property
    def shares_masks(self) -> bool:
        return self.at.shares_masks

    @property
    def visits(self) -> int:
        return self.at.visits

    def __call__(
        self, point: Point, climb: Climb | None = None, plan: Plan = ONE_PASS
    ) -> Iterator[tuple[float, Point]]:
        yield from self.at.scaled(point.batch.execution.share_of(self))(point, climb, plan)

    def see(self, point: Point, here: Tensor, there: Tensor) -> None:
        """Note what the task loss is at the starting point and there, means, for the step's rise."""
        point.batch.rises.append((self, torch.stack([here.detach(), there.detach()])))


def adaptive(at: Gradient | Ascent, target: float | None) -> Perturbation:
    """`at`, whose size is found if there is a target."""
    return at if target is None else Adaptive(at, target)
