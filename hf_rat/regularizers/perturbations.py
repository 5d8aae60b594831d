"""How a point is found: at random, along one slope, or by several projected steps.

A perturbation is called with the point it starts from and yields `(share, point)`: the points to be visited and what
each counts. It is a generator on purpose: what happens at a point that was yielded (its backward, for one) happens
before the next one is sought, so that FreeLB's backward at a point also gives the slope there.

`climb` is what the adversary maximises: None is the task loss, otherwise a function of the logits there.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from hf_rat.passes.plan import ONE_PASS, Plan
from hf_rat.passes.point import Point
from hf_rat.passes.sites import EMBEDDINGS, LOGITS_INPUT, is_weights
from hf_rat.passes.sites.geometry import Geometry
from hf_rat.regularizers.balls import L2, Hamming, Linf, draw

Climb = Callable[[Tensor], Tensor]
START_MASKS = ("one_drop", "base", "random")


@dataclass(frozen=True)
class Perturbation:
    """Base of all. `site` says where it moves: see passes/sites."""

    @property
    def site(self) -> str | None:
        return None

    @property
    def uses_clean_slope(self) -> bool:
        """Whether, climbing the task loss, it asks for the slope at the starting point itself."""
        return False

    @property
    def shares_masks(self) -> bool:
        """Whether the search replays the dropout masks of the starting point's first pass."""
        return False

    @property
    def also_masks(self) -> str | None:
        """A site at which the starting point's passes run with a mask too: they then run as the moved ones do.

        A recurrent layer with a mask takes other kernels, which round and draw dropout in their own way.
        """
        return None

    @property
    def visits(self) -> int:
        """How many points it yields."""
        return 1

    def __call__(
        self, point: Point, climb: Climb | None = None, plan: Plan = ONE_PASS
    ) -> Iterator[tuple[float, Point]]:
        """Yield each point that is visited, made with `plan`, and what it counts."""
        raise NotImplementedError


@dataclass(frozen=True)
class Noise(Perturbation):
    """A random point: U(-1, 1) (or N(0, 1)) entries, scaled as the ball's `noise` says."""

    ball: L2 | Linf
    kind: str = "uniform"
    site: str = EMBEDDINGS

    def __call__(
        self, point: Point, climb: Climb | None = None, plan: Plan = ONE_PASS
    ) -> Iterator[tuple[float, Point]]:
        assert not isinstance(self.ball.radius, tuple)
        move = self.ball.noise(self.ball.radius, point.batch.geometry(self.site), self.kind)
        yield 1.0, point.at(self.site, move, plan=plan)


@dataclass(frozen=True)
class Gradient(Perturbation):
    """The point of the ball farthest along the slope: FGM in an L2 ball, FGSM in a box.

    Args:
        ball: where it may go.
        start: length of the random direction at which the slope is taken; 0 takes it at the starting point itself.
        steps: slopes taken, each at `start` times the direction of the one before (VAT's power iteration).
    """

    ball: L2 | Linf
    start: float = 0.0
    steps: int = 1
    site: str = EMBEDDINGS

    def scaled(self, share: float) -> Gradient:
        """The same in a ball of another size; `start` is where a slope is taken, not how far the point may go."""
        return replace(self, ball=self.ball.scaled(share))

    @property
    def uses_clean_slope(self) -> bool:
        return self.start == 0

    @property
    def shares_masks(self) -> bool:
        # At other weights, under other dropout masks, the loss would change by those as much as by the move.
        return self.start > 0 or is_weights(self.site)

    def __call__(
        self, point: Point, climb: Climb | None = None, plan: Plan = ONE_PASS
    ) -> Iterator[tuple[float, Point]]:
        geometry = point.batch.geometry(self.site)
        if self.start == 0:
            slope = point.slope(self.site, climb)
        else:
            assert isinstance(self.ball, L2)
            start = self.ball.length(self.start, geometry)
            direction = self.ball.random_direction(geometry)
            for _ in range(self.steps):
                # Under other dropout masks the divergence at a small start would measure the dropout, not the move.
                slope = point.at(self.site, start * direction, point.masks).slope(self.site, climb)
                direction = self.ball.uphill(slope, geometry)
        masks = point.masks if is_weights(self.site) else None
        yield 1.0, point.at(self.site, self.ball.farthest(slope, geometry), masks, plan)


@dataclass(frozen=True)
class Ascent(Perturbation):
    """Projected steps uphill: PGD and SMART visit the last point, FreeLB every one of them.

    Args:
        ball: where it may go.
        step: length of a step, in the ball's norm and unit.
        steps: steps made before the last point is visited; with `every`, points visited (one step fewer is made).
        start: size of the random start, see the ball's `noise`; 0 starts where it stands.
        kind: "uniform" or "normal" start.
        every: visit all points, 1/steps each, all under the dropout masks of the first.
    """

    ball: L2 | Linf
    step: float
    steps: int = 3
    start: float = 0.0
    kind: str = "uniform"
    every: bool = False
    site: str = EMBEDDINGS

    def scaled(self, share: float) -> Ascent:
        """The same of another size, its steps and its start too."""
        return replace(self, ball=self.ball.scaled(share), step=share * self.step, start=share * self.start)

    @property
    def uses_clean_slope(self) -> bool:
        return self.start == 0 and not self.every

    @property
    def visits(self) -> int:
        return self.steps if self.every else 1

    @property
    def shares_masks(self) -> bool:
        return not self.every and (self.start > 0 or self.steps > 1)

    def __call__(
        self, point: Point, climb: Climb | None = None, plan: Plan = ONE_PASS
    ) -> Iterator[tuple[float, Point]]:
        geometry = point.batch.geometry(self.site)
        step = self.ball.length(self.step, geometry)
        move = torch.zeros(geometry.shape, device=geometry.device)
        if self.start > 0:
            move = self.ball.noise(self.start, geometry, self.kind)
        masks = point.batch.shared_masks() if self.every else point.masks
        for taken in range(self.steps):
            if self.every:
                last = taken == self.steps - 1
                # The backward at a point leaves the slope that the next one is found with.
                sites = plan.slope_sites if last else plan.slope_sites | {self.site}
                there = point.at(self.site, move, masks, replace(plan, slope_sites=sites))
                yield 1 / self.steps, there
                if last:
                    return
            else:
                # The first slope of a start at zero is the one that the starting point's own backward leaves.
                there = point if taken == 0 and self.start == 0 and climb is None else point.at(self.site, move, masks)
            slope = there.slope(self.site, climb)
            move = self.ball.project(move + step * self.ball.uphill(slope, geometry), geometry)
        yield 1.0, point.at(self.site, move, plan=plan)


@dataclass(frozen=True)
class Dropped(Perturbation):
    """A mask as dropout draws it, with `floor(rate * units)` units of each example off."""

    ball: Hamming
    site: str = LOGITS_INPUT

    def __call__(
        self, point: Point, climb: Climb | None = None, plan: Plan = ONE_PASS
    ) -> Iterator[tuple[float, Point]]:
        geometry = point.batch.geometry(self.site)
        move = -_random_units(self.ball.flips(geometry.shape[-1]), geometry)
        yield 1.0, point.at(self.site, move, plan=plan)


@dataclass(frozen=True)
class Flip(Perturbation):
    """The dropout mask farthest along the slope: flips where the gain is positive, counted from the mask at the point.

    Args:
        ball: how many units may differ.
        start_mask: the mask at which the first slope is taken. "one_drop": one random unit per example flipped;
            "random": `floor(rate * units)` of them; "base": none, where the slope comes from other dropout alone.
        steps: slopes taken, each at the mask found with the one before, the k-th of them for k / steps of the flips.
        site: where the mask is.
    """

    ball: Hamming
    start_mask: str = "one_drop"
    steps: int = 1
    site: str = LOGITS_INPUT

    @property
    def shares_masks(self) -> bool:
        return self.start_mask != "base" or self.steps > 1

    @property
    def also_masks(self) -> str | None:
        return self.site

    def __call__(
        self, point: Point, climb: Climb | None = None, plan: Plan = ONE_PASS
    ) -> Iterator[tuple[float, Point]]:
        geometry = point.batch.geometry(self.site)
        base = point.moves[self.site]
        flips = self.ball.flips(geometry.shape[-1])
        count = {"one_drop": 1, "base": 0, "random": flips}[self.start_mask]
        move = _random_units(count, geometry) * (-1.0 - 2.0 * base)
        for taken in range(self.steps):
            # The base itself differs from the prediction by other dropout masks only, if at all.
            masks = None if taken == 0 and self.start_mask == "base" else point.masks
            slope = point.at(self.site, move, masks).slope(self.site, climb)
            part = min(flips, max(1, flips * (taken + 1) // self.steps))
            move = self.ball.farthest(slope, geometry, move, base, part)
        yield 1.0, point.at(self.site, move, plan=plan)


def _random_units(count: int, geometry: Geometry) -> Tensor:
    """(batch, units): 1 at `count` random units of each example."""
    chosen = torch.zeros(geometry.shape, device=geometry.device)
    if count:
        chosen.scatter_(-1, draw("normal", geometry.shape, geometry.device).topk(count, dim=-1).indices, 1.0)
    return chosen


@dataclass(frozen=True)
class Redrawn(Perturbation):
    """The same inputs under newly drawn dropout masks; rate=0 is the network in evaluation."""

    rate: float | None = None

    def __call__(
        self, point: Point, climb: Climb | None = None, plan: Plan = ONE_PASS
    ) -> Iterator[tuple[float, Point]]:
        yield 1.0, Point(point.batch, point.moves, rate=self.rate, plan=plan)
