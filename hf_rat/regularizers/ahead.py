"""A look at the micro-batches of an optimizer step before its first backward, for a slope over all of them."""

from __future__ import annotations

from hf_rat.passes.batch import Ahead, Batch
from hf_rat.passes.point import Point
from hf_rat.regularizers.terms import Adversarial, Term
from hf_rat.regularizers.weight_perturbations import StepGradient


def sites_ahead(term: Term, step: int) -> list[str]:
    """The sites of weights whose slope over the whole of optimizer step `step` the term asks for."""
    found = [part.at for weight, part in term.parts(step) if weight > 0 and isinstance(part, Adversarial)]
    return sorted({at.site for at in found if isinstance(at, StepGradient)})


def look_ahead(term: Term, batch: Batch) -> Ahead:
    """The slopes of one micro-batch that `term` asks for over a whole step."""
    masks = batch.shared_masks()
    return Ahead(masks, {site: Point(batch, masks=masks).slope(site) for site in sites_ahead(term, batch.step)})
