"""How terms add and scale, and what every term answers."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from torch import Tensor

from hf_rat.passes.at_part import further
from hf_rat.passes.part import Part
from hf_rat.passes.point import Point
from hf_rat.regularizers.perturbations import Perturbation

FULL_STRENGTH = 10**12
"""Not a step of any run: every schedule is on there, at its full weight."""

Losses = dict[str, Tensor]
Group = Callable[[], Losses]


class Term:
    """Base of everything that can be asked. See the docstring of terms.py.

    Attributes:
        part: of the micro-batch, over which all passes but the first clean one run; None: over all of it.
    """

    part: Part | None = None

    def __add__(self, other: Term) -> Term:
        return Sum(self, other) if isinstance(other, Term) else NotImplemented

    def __rmul__(self, factor: float) -> Term:
        return Scaled(float(factor), self) if isinstance(factor, (int, float)) else NotImplemented

    __mul__ = __rmul__

    def parts(self, step: int) -> Iterator[tuple[float, Term]]:
        """The weighted terms that this one is the sum of, at optimizer step `step`."""
        yield 1.0, self

    def here(self, point: Point) -> Losses:
        return {}

    def elsewhere(self, point: Point) -> Iterator[Group]:
        yield from ()

    def count_elsewhere(self, step: int) -> int:
        """How many groups `elsewhere` yields at optimizer step `step`."""
        return 0

    def __init_subclass__(cls, **kwargs: object) -> None:
        super().__init_subclass__(**kwargs)
        if "elsewhere" in vars(cls) and "count_elsewhere" not in vars(cls):
            raise TypeError(
                f"{cls.__name__} defines elsewhere and not count_elsewhere, which says how many groups that yields: "
                "the gradients of several processes are exchanged after the last one"
            )

    @property
    def learns_here(self) -> bool:
        """Whether `here` returns losses."""
        return True

    @property
    def perturb(self) -> Perturbation | None:
        return None


@dataclass(frozen=True)
class Sum(Term):
    left: Term
    right: Term

    def parts(self, step: int) -> Iterator[tuple[float, Term]]:
        yield from self.left.parts(step)
        yield from self.right.parts(step)

    def __repr__(self) -> str:
        right = f"({self.right!r})" if isinstance(self.right, Sum) else repr(self.right)
        return f"{self.left!r} + {right}"


@dataclass(frozen=True)
class Scaled(Term):
    factor: float
    term: Term

    def __post_init__(self) -> None:
        if not (math.isfinite(self.factor) and self.factor >= 0):
            raise ValueError(f"a regularizer is scaled by {self.factor}; a factor must be finite and at least 0")

    def parts(self, step: int) -> Iterator[tuple[float, Term]]:
        for weight, term in self.term.parts(step):
            yield (weight if isinstance(term, TaskLoss) else self.factor * weight), term

    def __repr__(self) -> str:
        inner = f"({self.term!r})" if isinstance(self.term, (Sum, Scaled)) else repr(self.term)
        return f"{self.factor!r} * {inner}"


@dataclass(frozen=True)
class TaskLoss(Term):
    """Mean task loss over `passes` passes, each with its own dropout masks; `dropouts` gives each its rate.

    Args:
        passes: how many.
        dropouts: one rate for each.
        part: over which the passes but the first run.
    """

    passes: int = 1
    dropouts: tuple[float, ...] | None = None
    part: Part | None = None

    def here(self, point: Point) -> Losses:
        if self.part is None or self.passes <= point.plan.passes:
            return {"task": point.task}
        here, more = point, further(point, self.part)
        passes = here.plan.passes, more.plan.passes
        return {"task": (passes[0] * here.task + passes[1] * more.task) / sum(passes)}
