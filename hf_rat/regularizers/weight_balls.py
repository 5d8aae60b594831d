"""Balls around the weights: one in each tensor by itself, and one whose axes are as long as the weights are large.

Their methods are those of the balls in balls.py; L2 and Linf do for weights too, whose numbers are one example. A
slope and a move are (1, weights), and `geometry` is that of passes/sites/weights.py.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from hf_rat.regularizers.balls import draw, unit_vectors

if TYPE_CHECKING:
    from hf_rat.passes.sites.weights import WeightsGeometry

NORMS = ("all", "tensor")
"""What one norm is taken over: all weights at the site, or each tensor (a matrix, a bias) by itself."""


def _lengths(x: Tensor, geometry: WeightsGeometry) -> Tensor:
    """(1, weights): at each place the L2 norm of the tensor that it is in."""
    # Divided by its largest entry, no tensor's squares underflow or overflow.
    norms = [torch.linalg.vector_norm(piece / (peak := piece.abs().amax().clamp(min=_tiny(x)))) * peak
             for piece in x.view(-1).split(list(geometry.sizes))]  # fmt: skip
    return geometry.per_tensor(torch.stack(norms).unsqueeze(0))


def _tiny(x: Tensor) -> float:
    return torch.finfo(x.dtype).tiny


def _whole(slope: Tensor) -> Tensor:
    """The slope, zero if any entry is not finite: the others of it mean nothing either."""
    return torch.where(torch.isfinite(slope).all(), slope, 0.0)


@dataclass(frozen=True)
class PerTensor:
    """In each tensor by itself an L2 ball.

    Args:
        radius: its size.
        unit: "absolute"; "relative": radius times the norm of the tensor, as adversarial weight perturbation has it;
            a tensor of zeros then does not move.
    """

    radius: float
    unit: str = "absolute"

    def farthest(self, slope: Tensor, geometry: WeightsGeometry) -> Tensor:
        return self.length(self.radius, geometry) * self.uphill(slope, geometry)

    def uphill(self, slope: Tensor, geometry: WeightsGeometry) -> Tensor:
        slope = _whole(slope)
        return slope / _lengths(slope, geometry).clamp(min=_tiny(slope))

    def length(self, size: float, geometry: WeightsGeometry) -> Tensor | float:
        """`size`, which is in the ball's unit, in absolute terms; (1, weights) where each tensor has one."""
        return size * _lengths(geometry.values(), geometry) if self.unit == "relative" else size


@dataclass(frozen=True)
class Ellipsoid:
    """An ellipsoid: all e with ||e / T|| <= radius, T = |w| + eta for each weight w (ASAM).

    Args:
        radius: its size.
        eta: added to the size of each weight, so that one of zero moves too.
    """

    radius: float
    eta: float = 0.01

    def farthest(self, slope: Tensor, geometry: WeightsGeometry) -> Tensor:
        """`radius T^2 g / ||T g||`."""
        return self.radius * self.uphill(slope, geometry)

    def uphill(self, slope: Tensor, geometry: WeightsGeometry) -> Tensor:
        scale = geometry.values().abs() + self.eta
        return scale * unit_vectors(scale * _whole(slope), (1,))


@dataclass(frozen=True)
class Spread:
    """No ball but a spread: a box around each number, `radius` times the standard deviation of its tensor wide.

    Args:
        radius: the width of the box (NoisyTune's lambda).
    """

    radius: float

    def noise(self, size: float, geometry: WeightsGeometry, kind: str = "uniform") -> Tensor:
        """U(-size / 2, size / 2) times the standard deviation of the tensor; a tensor of one number does not move."""
        pieces = geometry.values().view(-1).split(list(geometry.sizes))
        spread = torch.stack([x.std() if x.numel() > 1 else x.new_zeros(()) for x in pieces]).unsqueeze(0)
        return draw(kind, geometry.shape, geometry.device) * (size / 2) * geometry.per_tensor(spread)
