"""Geometry: how far a perturbation may go, and which way is steepest.

A ball is a frozen value. Given a slope (the gradient, at the perturbation, of what the adversary climbs) it returns

    farthest(slope, geometry)   the point of the ball farthest along the slope   FGM, FGSM, VAT, adversarial dropout
    uphill(slope, geometry)     a step of length one in the ball's norm          PGD, FreeLB, SMART
    project(move, geometry)     the nearest point inside the ball
    noise(size, geometry)       a random point

`geometry` holds the shapes, the padding and the token ids of a site (passes/sites/geometry.py). Everything is fp32.
An example whose slope is zero or has an entry that is not finite does not move, and no move is NaN. A norm is taken
after division by the largest entry, so that the tiny gradients of saturated losses neither underflow nor overflow.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor

if TYPE_CHECKING:
    from hf_rat.passes.sites.geometry import Geometry

SCOPES = ("example", "table")
UNITS = ("absolute", "embedding", "relative")


def draw(kind: str, shape: tuple[int, ...], device: torch.device) -> Tensor:
    """fp32 noise: "uniform" on [-1, 1] or standard "normal". All noise of the package is drawn here."""
    if kind == "uniform":
        return torch.empty(shape, device=device).uniform_(-1.0, 1.0)
    return torch.randn(shape, device=device)


def unit_vectors(x: Tensor, dims: tuple[int, ...]) -> Tensor:
    """`x / ||x||_2` over `dims`; zero where x is zero or has an entry that is not finite."""
    if x.numel() == 0:  # texts that are all empty have no largest entry
        return x
    peak = x.abs().amax(dims, keepdim=True)
    scaled = x / peak.clamp(min=torch.finfo(x.dtype).tiny)
    unit = scaled / scaled.square().sum(dims, keepdim=True).sqrt().clamp(min=torch.finfo(x.dtype).tiny)
    return torch.where(torch.isfinite(peak), unit, 0.0)


def _finite(slope: Tensor) -> Tensor:
    """fp32, zero in the whole example where an entry is not finite: the others of it mean nothing either."""
    slope = slope.float()
    return torch.where(torch.isfinite(slope).all(dim=_inner(slope), keepdim=True), slope, 0.0)


def _inner(x: Tensor) -> tuple[int, ...]:
    return tuple(range(1, x.dim()))


@dataclass(frozen=True)
class L2:
    """Euclidean ball.

    Args:
        radius: its size; a tuple gives one radius to each pass at the point.
        scope: "example" takes one norm per example over (time, dim), as Miyato et al. 2017. "table" moves the
            embedding table, as the R-AT authors' code does: all occurrences of a token move alike, and one norm is
            taken over the micro-batch, so that the strength per example falls with the batch size.
        unit: "absolute"; "embedding": radius times the mean L2 norm of the rows of the embedding table; or "relative":
            radius times the L2 norm of the example's own tensor at the site, over all its tokens but padding.

    Raises:
        ValueError: scope="table" with unit="relative".
    """

    radius: float | tuple[float, ...]
    scope: str = "example"
    unit: str = "absolute"

    def __post_init__(self) -> None:
        if self.scope == "table" and self.unit == "relative":
            raise ValueError(
                'unit="relative" measures each example by itself, and scope="table" moves a table that all share; use '
                'unit="embedding" or scope="example"'
            )

    def scaled(self, share: float) -> L2:
        """The same of another size."""
        radii = self.radius
        return replace(self, radius=tuple(share * r for r in radii) if isinstance(radii, tuple) else share * radii)

    def farthest(self, slope: Tensor, geometry: Geometry) -> Tensor:
        """(batch, ...) like `slope`, or (passes, batch, ...) for a tuple of radii."""
        direction = self.uphill(slope, geometry)
        if isinstance(self.radius, tuple):
            return torch.stack([self.length(radius, geometry) * direction for radius in self.radius])
        return self.length(self.radius, geometry) * direction

    def uphill(self, slope: Tensor, geometry: Geometry) -> Tensor:
        slope = slope.float()
        if self.scope == "table":
            rows = geometry.gather_rows(slope)
            return geometry.spread_rows(unit_vectors(rows, (0, 1)))
        return unit_vectors(slope, _inner(slope))

    def project(self, move: Tensor, geometry: Geometry) -> Tensor:
        assert not isinstance(self.radius, tuple)
        radius = self.length(self.radius, geometry)
        if self.scope == "table":
            # Every occurrence of a token carries the same move: the row is the mean over its occurrences.
            rows = geometry.gather_rows(move, mean=True)
            norm = rows.square().sum().sqrt()
        else:
            norm = move.square().sum(_inner(move), keepdim=True).sqrt()
        return move * (radius / norm.clamp(min=torch.finfo(move.dtype).tiny)).clamp(max=1.0)

    def noise(self, size: float, geometry: Geometry, kind: str = "uniform") -> Tensor:
        """Entries `size / sqrt(N)` times U(-1, 1) or N(0, 1), N the unpadded entries in the scope (FreeLB's start).

        The norm is then about size / sqrt(3) for "uniform", and about size for "normal".
        """
        length = self.length(size, geometry)
        if self.scope == "table":
            rows = draw(kind, geometry.rows_shape, geometry.device)
            return geometry.masked(geometry.spread_rows(rows * (length / math.sqrt(geometry.row_entries()))))
        return geometry.masked(draw(kind, geometry.shape, geometry.device)) * (length / geometry.entries().sqrt())

    def length(self, size: float, geometry: Geometry) -> float | Tensor:
        """`size`, which is in the ball's unit, in absolute terms."""
        return geometry.length(size, self.unit)

    def random_direction(self, geometry: Geometry) -> Tensor:
        """Uniform on the unit sphere, zero on padding (VAT's start)."""
        return self.uphill(geometry.masked(draw("normal", geometry.shape, geometry.device)), geometry)


@dataclass(frozen=True)
class Linf:
    """Box: every entry of the perturbation is at most `radius`.

    Args:
        radius: its half width.
        unit: "absolute"; "embedding": radius times the mean L2 norm of the rows of the embedding table over
            sqrt(dim), which is an entry of a row of that norm whose entries are all alike; or "relative": radius times
            the root of the mean square of the example's own entries at the site, which is that with `unit="relative"`
            of L2 in its corners.
    """

    radius: float
    unit: str = "absolute"

    def scaled(self, share: float) -> Linf:
        """The same of another size."""
        return replace(self, radius=share * self.radius)

    def farthest(self, slope: Tensor, geometry: Geometry) -> Tensor:
        return self.length(self.radius, geometry) * _finite(slope).sign()

    def uphill(self, slope: Tensor, geometry: Geometry) -> Tensor:
        """`slope / max |slope|` per example, as SMART and FreeLB's L-infinity option."""
        slope = slope.float()
        if slope.numel() == 0:
            return slope
        peak = slope.abs().amax(_inner(slope), keepdim=True)
        return torch.where(torch.isfinite(peak), slope / peak.clamp(min=torch.finfo(slope.dtype).tiny), 0.0)

    def project(self, move: Tensor, geometry: Geometry) -> Tensor:
        radius = self.length(self.radius, geometry)
        return move.clamp(-radius, radius)  # type: ignore[arg-type]

    def noise(self, size: float, geometry: Geometry, kind: str = "uniform") -> Tensor:
        """Entries `size` times U(-1, 1) or N(0, 1); zero on padding."""
        return self.length(size, geometry) * geometry.masked(draw(kind, geometry.shape, geometry.device))

    def length(self, size: float, geometry: Geometry) -> float | Tensor:
        """`size`, which is in the ball's unit, in absolute terms."""
        length = geometry.length(size, self.unit)
        if self.unit == "relative":
            return length / geometry.entries().sqrt()
        return length / math.sqrt(geometry.shape[-1]) if self.unit == "embedding" else length


@dataclass(frozen=True)
class Hamming:
    """Masks that differ from a given 0/1 mask in at most `floor(rate * units)` units per example.

    A move is the change of the mask: -1 switches a unit off, +1 switches one on.

    Args:
        rate: the fraction of units that may be flipped, in [0, 1).
    """

    rate: float

    def flips(self, units: int) -> int:
        return math.floor(self.rate * units + 1e-9)  # 0.03 * 100 is 2.9999... in binary

    def farthest(
        self,
        slope: Tensor,
        geometry: Geometry,
        start: Tensor | None = None,
        base: Tensor | None = None,
        count: int | None = None,
    ) -> Tensor:
        """The best mask within the radius to first order: the flips of greatest positive gain.

        Args:
            slope: (batch, units), of the divergence with respect to the mask, taken at `start`.
            start: (batch, units), the move at which the slope was taken; zeros when None.
            base: (batch, units) in {-1, 0}, the mask (less one) from which moves and flips count; all on when None.
            count: how many flips, if fewer than the radius allows.

        Returns:
            (batch, units): -1 where a unit of the base goes off, +1 where one comes on. A unit that the start has
            flipped stays flipped only if it is among the best.
        """
        slope = _finite(slope)
        start = torch.zeros_like(slope) if start is None else start
        flip = torch.full_like(slope, -1.0) if base is None else -1.0 - 2.0 * base
        count = min(self.flips(slope.shape[-1]) if count is None else count, slope.shape[-1])
        if count == 0:
            return torch.zeros_like(slope)
        # To first order a flip is worth as much from the start as from the base: the slope is that of the start.
        best = (slope * flip).topk(count, dim=-1)
        flipped = torch.zeros_like(slope).scatter(-1, best.indices, (best.values > 0).to(slope.dtype))
        # Where the slope says nothing at all (a saturated example), stay at the start rather than flip at random.
        silent = (slope == 0).all(-1, keepdim=True)
        return torch.where(silent, start, flipped * flip)
