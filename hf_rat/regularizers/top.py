"""A term whose passes run the top of the model only."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

from hf_rat.regularizers.perturbations import Redrawn
from hf_rat.regularizers.schedules import inner_terms
from hf_rat.regularizers.terms import FULL_STRENGTH, Consistency, TaskLoss, Term


@dataclass(frozen=True)
class Top(Term):
    """`term`, whose passes begin at a cut: the layers below it run once for a micro-batch, forwards and backwards.

    Args:
        term: perturbs, if anything, what crosses the cut: site `TOP`.
        top: the share of the layers above the cut, in (0, 1), or the name of the lowest of them.
    """

    term: Term
    top: float | str

    def parts(self, step: int) -> Iterator[tuple[float, Term]]:
        yield from self.term.parts(step)


def top_of(term: Term) -> float | str | None:
    """Where a regularizer cuts the model; None: nowhere.

    Raises:
        ValueError: at several places, or it has whole passes that must be compared with those from the cut, or give
            their slope to others.
    """
    tops, wholes = [], []
    left = [term]
    while left:
        one = left.pop()
        inner = inner_terms(one)
        if isinstance(one, Top):
            tops.append(one.top)
        elif any(_holds_top(part) for part in inner):
            left += inner
        else:
            wholes.append(one)
    if len(set(tops)) > 1:
        raise ValueError(f"{term!r} cuts the model at several places ({', '.join(map(readable, tops))}); give one top")
    apart = next((one for one in wholes if any(w > 0 and _needs_whole(p) for w, p in one.parts(FULL_STRENGTH))), None)
    if tops and apart is not None:
        raise ValueError(
            f"{apart!r} compares whole passes, beside a part with top={readable(tops[0])}, whose passes share the "
            "layers below; give both the same top or neither"
        )
    return tops[0] if tops else None


def as_top(given: Any) -> Any:
    """A share that came as text, "1/3" or "0.3", as a number; all else as it is."""
    try:
        return float(Fraction(given)) if isinstance(given, str) else given
    except (ValueError, ArithmeticError):
        return given


def readable(top: float | str) -> str:
    """A literal of `top` that reads back as itself: 1/3 rather than 0.3333333333333333."""
    if isinstance(top, float):
        near = Fraction(top).limit_denominator(99)
        if near.numerator / near.denominator == top and len(repr(top)) > len(str(near)):
            return str(near)
    return repr(top)


def _holds_top(term: Term) -> bool:
    return isinstance(term, Top) or any(map(_holds_top, inner_terms(term)))


def _needs_whole(term: Term) -> bool:
    """Whether a primitive term compares passes of the whole model with each other, or wants a slope of one."""
    at = term.perturb
    if at is not None:
        return at.uses_clean_slope or at.shares_masks or isinstance(at, Redrawn)
    return isinstance(term, Consistency) or (isinstance(term, TaskLoss) and term.passes > 1)
