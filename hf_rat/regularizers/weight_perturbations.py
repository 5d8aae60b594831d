"""How other weights are found: by the slope of a micro-batch or of a whole step, by momentum, or towards a centre."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch

from hf_rat.passes.plan import ONE_PASS, Plan
from hf_rat.passes.point import Point
from hf_rat.passes.sites import MIXED, WEIGHTS
from hf_rat.regularizers.balls import L2, draw
from hf_rat.regularizers.perturbations import Climb, Gradient, Perturbation
from hf_rat.regularizers.weight_balls import Ellipsoid, PerTensor

OVER = ("microbatch", "step")
"""What a slope is the mean over: the micro-batch of a process, or all micro-batches of an optimizer step."""


SOURCES = ("own", "optimizer")
"""Whose momentum it is."""


def steepest(ball: L2 | PerTensor | Ellipsoid, site: str = WEIGHTS, over: str = "microbatch") -> Perturbation:
    """The weights of a ball that are farthest along the slope of the task loss.

    Args:
        ball: where they may go.
        site: which weights.
        over: one of `OVER`.
    """
    return StepGradient(ball, site) if over == "step" else Gradient(ball, site=site)  # type: ignore[arg-type]


@dataclass(frozen=True)
class StepGradient(Perturbation):
    """The weights of the ball farthest along the slope of the whole optimizer step, which a look ahead has found."""

    ball: L2 | PerTensor | Ellipsoid
    site: str = WEIGHTS

    def __call__(
        self, point: Point, climb: Climb | None = None, plan: Plan = ONE_PASS
    ) -> Iterator[tuple[float, Point]]:
        ahead = point.batch.ahead
        if ahead is None:
            raise ValueError(
                "over='step' needs all micro-batches of an optimizer step before the first backward: give them to "
                "Regularization.begin_step(batches, step=step), or use over='microbatch'"
            )
        move = self.ball.farthest(ahead.slopes[self.site], point.batch.geometry(self.site))  # type: ignore[arg-type]
        yield 1.0, point.at(self.site, move, ahead.masks, plan)


@dataclass(frozen=True)
class Mixed(Perturbation):
    """Each weight is at random that of the centre, and moved away from it so that the mean is the weight itself.

    Args:
        rate: the probability of the centre's.
        site: which weights; a site of this kind lets the slope through where a weight is not the centre's.
    """

    rate: float
    site: str = MIXED

    def __call__(
        self, point: Point, climb: Climb | None = None, plan: Plan = ONE_PASS
    ) -> Iterator[tuple[float, Point]]:
        geometry = point.batch.geometry(self.site)
        chosen = (draw("uniform", geometry.shape, geometry.device) < 2 * self.rate - 1).float()
        yield 1.0, point.at(self.site, (chosen - self.rate) / (1 - self.rate), plan=plan)


@dataclass(frozen=True)
class Momentum(Perturbation):
    """The weights of the ball farthest against a momentum of the slopes at the weights visited before (MSAM).

    Args:
        ball: where they may go.
        beta: how much of the momentum is kept at each optimizer step.
        source: one of `SOURCES`: a momentum of its own, or the optimizer's.
        site: which weights.
    """

    ball: L2 | PerTensor | Ellipsoid
    beta: float = 0.9
    source: str = "own"
    site: str = WEIGHTS

    def __call__(
        self, point: Point, climb: Climb | None = None, plan: Plan = ONE_PASS
    ) -> Iterator[tuple[float, Point]]:
        execution, geometry = point.batch.execution, point.batch.geometry(self.site)
        opened = execution.open_site(self.site)
        direction = opened.direction  # type: ignore[attr-defined]
        if direction is None:
            direction = torch.zeros(geometry.shape, device=geometry.device)
        move = self.ball.farthest(-direction, geometry)  # type: ignore[arg-type]
        if self.source == "own":
            move.requires_grad_().register_hook(opened.hear)  # type: ignore[attr-defined]
        yield 1.0, Point(point.batch, {**point.moves, self.site: move}, None, point.rate, plan)
