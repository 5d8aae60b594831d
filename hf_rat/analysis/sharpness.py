"""How sharp the minimum is that a model lies in: the worst loss nearby, and the curvature of the loss."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from hf_rat.analysis.evaluation import Batches
from hf_rat.analysis.hessian import Hessian, top_eigenvalues, trace
from hf_rat.analysis.unchanged import unchanged
from hf_rat.passes.sites import WeightsSite
from hf_rat.regularizers.weight_balls import PerTensor


@dataclass(frozen=True)
class Sharpness:
    """What `sharpness` measures.

    Args:
        loss: the mean loss.
        worst_loss: the largest that gradient ascent finds in the ball; the true maximum is no less.
        rise: 100 (worst_loss - loss) / (1 + loss), the epsilon-sharpness of Keskar et al. (2017) in percent.
        eigenvalues: the largest of the Hessian, in falling order.
        trace: of the Hessian.
        trace_error: standard error of that estimate.
        products: "double backward" or "central differences".
        weights: how many are trained.
        radius: of the ball.
        seed: of the random vectors.
    """

    loss: float
    worst_loss: float
    rise: float
    eigenvalues: list[float]
    trace: float
    trace_error: float
    products: str
    weights: int
    radius: float
    seed: int


def sharpness(
    model: nn.Module,
    batches: Batches,
    radius: float = 0.01,
    steps: int = 20,
    eigenvalues: int = 3,
    probes: int = 10,
    seed: int = 0,
    way: str | None = None,
    say: Callable[[str], Any] = print,
) -> Sharpness:
    """Measure a model, in evaluation mode; it is what it was afterwards, bit for bit.

    Args:
        model: which returns its loss; what of it is frozen stays where it is.
        batches: what its forward takes, with labels, on its device.
        radius: of the ball, in each weight tensor a share of its norm.
        steps: of the ascent.
        eigenvalues: how many.
        probes: random vectors for the trace.
        seed: of these.
        way: of the products with the Hessian; see `Hessian`.
        say: told where products come by differences.

    Raises:
        ValueError: a radius that is not positive, no step, or what `Hessian`, `top_eigenvalues` and `trace` refuse.
    """
    if not (radius > 0 and math.isfinite(radius)):
        raise ValueError(f"radius={radius!r} is not a positive number")
    if steps < 1:
        raise ValueError(f"steps={steps!r}: at least 1 is needed")
    with unchanged(model):
        hessian = Hessian(model, batches, way, say)
        loss, worst = _climb(model, hessian, radius, steps)
        known = top_eigenvalues(hessian, eigenvalues, seed)
        middle, error = trace(hessian, probes, seed, known)
    rise = 100 * (worst - loss) / (1 + loss)
    values = [float(value) for value in known[0]]
    return Sharpness(loss, worst, rise, values, middle, error, hessian.way, hessian.size, radius, seed)


def _climb(model: nn.Module, hessian: Hessian, radius: float, steps: int) -> tuple[float, float]:
    """The loss at the weights, and the largest on the way up inside of the ball."""
    site = WeightsSite(model)
    geometry, ball, start = site.geometry({}), PerTensor(radius, "relative"), site.values()
    limit = ball.length(radius, geometry)
    move, losses = torch.zeros_like(start), []
    for _ in range(steps):
        loss, slope = hessian.slope()
        losses.append(loss)
        uphill = ball.uphill(torch.from_numpy(slope).to(move).unsqueeze(0), geometry)
        move = move + 2.5 / steps * limit * uphill
        # A tensor that has left its ball is longer, at every place, than what points the same way on its surface.
        edge = limit * ball.uphill(move, geometry)
        move = torch.where(move.abs() > edge.abs(), edge, move)
        _write(site, start + move)
    losses.append(hessian.slope()[0])
    _write(site, start)
    return losses[0], max(losses)


@torch.no_grad()
def _write(site: WeightsSite, flat: Tensor) -> None:
    for parameter, part in zip(site.parameters.values(), site.split(flat), strict=True):
        parameter.copy_(part)
