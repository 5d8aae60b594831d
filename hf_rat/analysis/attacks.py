"""Attacks: for each example, what is added to its embeddings, or which units are off, so that its loss rises."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor, nn

from hf_rat.analysis.answers import Answers, Moves, answers_of
from hf_rat.passes.batch import Batch
from hf_rat.passes.plan import Plan
from hf_rat.passes.point import Point
from hf_rat.passes.sites import EMBEDDINGS, LOGITS_INPUT
from hf_rat.regularizers.balls import L2, Hamming
from hf_rat.regularizers.perturbations import Ascent, Dropped, Flip, Gradient, Perturbation

_REACH = 2.5  # of all steps of PGD together, in radii: they can go from one side of the ball to the other


def fgm(radius: float) -> Perturbation:
    """The point of the ball farthest along the slope of the loss; `radius` is a share of the length of the example's
    own embeddings, over all its tokens.
    """
    return Gradient(L2(radius, unit="relative"))


def pgd(radius: float, steps: int = 10) -> Perturbation:
    """The end of `steps` steps uphill, each 2.5 / steps of the radius long, projected into the ball; as `fgm`."""
    return Ascent(L2(radius, unit="relative"), step=_REACH * radius / steps, steps=steps)


def random_masks(rate: float) -> Perturbation:
    """`floor(rate * units)` random units of each example are off."""
    return Dropped(Hamming(rate))


def adversarial_masks(rate: float, steps: int = 2) -> Perturbation:
    """The units whose absence raises the loss most, to first order, at most `floor(rate * units)` of each example."""
    return Flip(Hamming(rate), steps=steps)


ATTACKS: dict[str, Callable[..., Perturbation]] = {
    "fgm": fgm,
    "pgd": pgd,
    "random_masks": random_masks,
    "adversarial_masks": adversarial_masks,
}
"""name -> makes the attack from its size, and its steps where it has some."""

STEPPED = ("pgd", "adversarial_masks")
"""Those whose search takes steps."""

MASKS = ("random_masks", "adversarial_masks")
"""Those that switch off units that the last layer reads; units that are on are scaled as in dropout."""


def attacked(
    model: nn.Module,
    batches: Sequence[Mapping[str, Tensor]],
    attack: str,
    sizes: Sequence[float],
    steps: int | None = None,
    seed: int = 0,
) -> list[Answers]:
    """What a model answers under an attack.

    Args:
        model: as in `answers_of`; it has word embeddings, or for masks a linear layer that makes its logits.
        batches: likewise.
        attack: one of `ATTACKS`.
        sizes: relative radii above 0, or rates of masks in (0, 1).
        steps: of the search of one of `STEPPED`; None is its own default.
        seed: of the masks: what is off at one rate is off at every higher one, if it is random.

    Returns:
        For each size, the answers to all examples.

    Raises:
        ValueError: an unknown attack, a size or number of steps out of range, or a model that it cannot be made on.
    """
    if attack not in ATTACKS:
        raise ValueError(f"attack={attack!r} is not known; there are {', '.join(ATTACKS)}")
    for size in sizes:
        if not 0 < size < (1 if attack in MASKS else float("inf")):
            raise ValueError(
                f"{attack} of size {size}: {'a rate in (0, 1)' if attack in MASKS else 'a radius above 0'} is needed"
            )
    if steps is not None and (steps < 1 or attack not in STEPPED):
        raise ValueError(f"steps={steps} of {attack}: {' and '.join(STEPPED)} take at least 1, the others none")
    searches = [ATTACKS[attack](size, **({} if steps is None else {"steps": steps})) for size in sizes]

    def find(batch: Batch, index: int) -> list[Moves]:
        return [find_move(batch, search, 1_000_003 * seed + index) for search in searches]

    return answers_of(model, batches, find, LOGITS_INPUT if attack in MASKS else EMBEDDINGS)


def find_move(batch: Batch, search: Perturbation, seed: int = 0) -> Moves:
    """Where a search ends that climbs the task loss.

    Args:
        batch: of a model whose site is open.
        search: yields one point.
        seed: of what it draws.
    """
    torch.manual_seed(seed)
    site = str(search.site)
    masked = frozenset({site}) if site == LOGITS_INPUT else frozenset()
    here = Point(batch, plan=Plan(also_masks=masked, graph=False))
    ((_, there),) = search(here, None, Plan(graph=False))
    return {site: there.moves[site]}
