"""When a term is asked: from when until when, how often, and with what weight at first.

A place in a run is a whole number of optimizer steps, or a float in (0, 1), a share of all of them. How many there are
is known only where a run is: `timed` turns the shares of a term into steps.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, fields, replace
from typing import Any

import numpy as np

from hf_rat.regularizers.algebra import FULL_STRENGTH, Scaled, TaskLoss, Term


@dataclass(frozen=True)
class Scheduled(Term):
    """The whole term in every `every`-th step from `begin` on and before `end`; plain training in all others.

    Over `warmup` steps the term grows linearly to its weight: a ramp that scales what a factor scales, everything but
    the clean task loss.

    Args:
        term: what is scheduled.
        begin: its first step, from 0, or a share of all steps.
        warmup: steps of the ramp, or a share of all; step `begin + warmup` is the first at full weight.
        end: the first step at which it is over, or a share; None: never.
        every: it is on in one of so many steps, `begin` being the first.
        below: it waits besides until the task loss has fallen below this share of what it was at first; `settled`
            makes of it what it is at a moment of a run. None: it does not wait.
    """

    term: Term
    begin: float = 0
    warmup: float = 0
    end: float | None = None
    every: int = 1
    below: float | None = None

    def parts(self, step: int) -> Iterator[tuple[float, Term]]:
        if step >= FULL_STRENGTH:
            yield from self.term.parts(step)
        elif self.is_on(step):
            ramp = min(1.0, (step - self.begin + 1) / (self.warmup + 1))
            yield from Scaled(ramp, self.term).parts(step)
        else:
            yield 1.0, TaskLoss()

    def is_on(self, step: Any) -> Any:
        """Whether the term is asked at a step, or at each step of an array.

        Raises:
            ValueError: a place is a share, and `timed` was not called.
        """
        for name, place in self.places():
            if isinstance(place, float):
                raise ValueError(f"{name}={place!r} is a share of all steps, of which nobody said how many there are")
        on = (self.begin <= step) & ((step - self.begin) % self.every == 0)
        return on if self.end is None else on & (step < self.end)

    def places(self) -> list[tuple[str, float]]:
        """(name, step or share) of those that are set."""
        named = (("begin", self.begin), ("warmup", self.warmup), ("end", self.end))
        return [(name, place) for name, place in named if place is not None]


def timed(term: Term, total: int | None, of: Term | None = None) -> Term:
    """The same with every share of a run as a whole number of steps.

    Args:
        term: any.
        total: optimizer steps of the whole run; None: nobody knows.
        of: what errors call it; None: `term`.

    Raises:
        ValueError: it has a share, and nobody knows of what; or a schedule that is never on within the run.
    """
    of = term if of is None else of
    if isinstance(term, Scheduled):
        steps = {name: _steps(name, place, total, of) for name, place in term.places()}
        begin, end = steps["begin"], steps.get("end")
        if end is not None and begin >= end:
            raise ValueError(f"{of!r} begins at step {begin} of {total} and ends at step {end}; end must come later")
        if total is not None and begin >= total:
            raise ValueError(
                f"{of!r} begins at step {begin}, and the run has {total} of them (0 to {total - 1}): it would train "
                "plainly throughout; begin earlier, for instance at a share of all steps (begin=0.5)"
            )
        term = replace(term, **steps)  # type: ignore[arg-type]
    inner = {name: timed(part, total, of if isinstance(part, Scheduled) else None) for name, part in _inner(term)}
    return replace(term, **inner) if inner else term  # type: ignore[type-var]


def settled(term: Term, fallen: float) -> Term:
    """The same at a moment of a run: what waits for the task loss is plain training, or waits no more.

    Args:
        term: any.
        fallen: the task loss at that moment, as a share of what it was at first.
    """
    if isinstance(term, Scheduled) and term.below is not None:
        return settled(replace(term, below=None), fallen) if fallen < term.below else TaskLoss()
    inner = {name: settled(part, fallen) for name, part in _inner(term)}
    return replace(term, **inner) if inner else term  # type: ignore[type-var]


def thresholds(term: Term) -> list[float]:
    """`below` of each part of a term that waits for the task loss to fall."""
    return [schedule.below for schedule in schedules(term) if schedule.below is not None]


def has_shares(term: Term) -> bool:
    """Whether a schedule of `term` depends on the length of the run."""
    return any(isinstance(place, float) for schedule in schedules(term) for _, place in schedule.places())


def schedules(term: Term) -> Iterator[Scheduled]:
    """Those inside of a term, and itself."""
    if isinstance(term, Scheduled):
        yield term
    for _, part in _inner(term):
        yield from schedules(part)


def phases(term: Term, total: int) -> list[tuple[int, int]]:
    """What a run of a timed term consists of: (first step, how many steps) for each set of schedules that are on."""
    found = list(schedules(term))
    steps = np.arange(total)
    # One number for each set.
    sets = sum((schedule.is_on(steps).astype(np.int64) << place for place, schedule in enumerate(found)), 0 * steps)
    _, first, count = np.unique(sets, return_index=True, return_counts=True)
    return sorted(zip(first.tolist(), count.tolist(), strict=True))


def _steps(name: str, place: int | float, total: int | None, of: Term) -> int:
    if not isinstance(place, float):
        return place
    if total is None:
        raise ValueError(
            f"{name}={place!r} of {of!r} is a share of all optimizer steps, and nobody said how many there are: give "
            f"Regularization(..., total_steps=), a Trainer max_steps (until it trains), or {name} a number of steps"
        )
    return round(place * total)


def inner_terms(term: Term) -> list[Term]:
    """What a term is made of."""
    return [part for _, part in _inner(term)]


def _inner(term: Term) -> list[tuple[str, Term]]:
    """(field, term) of what a term is made of: those of recipes, sums and the like, and of terms of a user's own."""
    named = ((f.name, getattr(term, f.name)) for f in fields(term)) if hasattr(term, "__dataclass_fields__") else ()  # type: ignore[arg-type]
    return [(name, part) for name, part in named if isinstance(part, Term)]
