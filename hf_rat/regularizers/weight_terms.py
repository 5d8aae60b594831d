"""Terms about where training began: its weights, what it predicted, and noise that is added to its weights."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from hf_rat.passes.at_part import chosen, first_logits
from hf_rat.passes.part import Part
from hf_rat.passes.point import Point
from hf_rat.passes.sites import WEIGHTS
from hf_rat.regularizers.algebra import Losses, Term
from hf_rat.regularizers.divergences import divergence_from
from hf_rat.regularizers.weight_balls import Spread


@dataclass(frozen=True)
class Distance(Term):
    """Half the squared L2 distance of the weights from those that training began with.

    Args:
        site: which weights.
    """

    site: str = WEIGHTS

    def here(self, point: Point) -> Losses:
        opened = point.batch.execution.open_site(self.site)
        parameters, centre = opened.parameters, opened.centre  # type: ignore[attr-defined]
        if centre is None:
            raise ValueError("the distance needs a centre: run it through Regularization, which keeps one")
        away = [(p - c).square().sum() for p, c in zip(parameters.values(), opened.split(centre), strict=True)]  # type: ignore[attr-defined]
        return {"distance": 0.5 * torch.stack([x.to(centre.device) for x in away]).sum()}


@dataclass(frozen=True)
class Anchored(Term):
    """Agreement with the model that training began with, run without dropout.

    Args:
        divergence: of (the model that it was, here).
        part: over which the model that it was runs.
    """

    divergence: str = "kl"
    part: Part | None = None

    def here(self, point: Point) -> Losses:
        anchor = point.batch.execution.anchor
        if anchor is None:
            raise ValueError("the anchor needs the model that training began with: run it through Regularization")
        batch = chosen(point, self.part)
        return {"anchor": divergence_from(anchor, batch, self.divergence, first_logits(point, batch))}


@dataclass(frozen=True)
class NoisyStart(Term):
    """Noise is added to the weights once, before the first step of a run; no loss.

    Args:
        spread: of the noise.
        site: which weights.
    """

    spread: Spread
    site: str = WEIGHTS

    @property
    def learns_here(self) -> bool:
        return False
