"""Terms over a part of the micro-batch: the clean pass runs over all examples, the others over those that are chosen.

Where a perturbation is found by what the clean pass leaves, it is found for all examples, and those that are chosen
move. Where the search would replay the dropout masks of the clean pass, which fewer examples cannot, the part has a
first pass of its own.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TypeVar

from hf_rat.passes.part import Part
from hf_rat.regularizers.algebra import Scaled, Sum, Term

T = TypeVar("T", bound=Term)


def over_part(term: Term, part: Part) -> Term:
    """The same, asked of a part of each micro-batch; the first clean pass is asked of all of it."""
    if isinstance(term, Sum):
        return Sum(over_part(term.left, part), over_part(term.right, part))
    if isinstance(term, Scaled):
        return Scaled(term.factor, over_part(term.term, part))
    return replace(term, part=part)  # type: ignore[type-var]


def is_apart(term: Term) -> bool:
    """Whether a term asks for a first pass over its part, since its search uses the masks of that pass."""
    at = term.perturb
    return term.part is not None and at is not None and (at.shares_masks or at.visits > 1)


def whole(term: T) -> T:
    """The same of the whole batch."""
    return term if term.part is None else replace(term, part=None)  # type: ignore[type-var]
