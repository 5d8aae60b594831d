"""What is asked at a point: the task loss, agreement between passes, agreement with the clean prediction.

A term is a frozen value. Terms add (`a + b`) and scale (`0.5 * a`); a sum has one clean task loss, that of the operand
that asks for most passes, and a factor scales everything but the clean task loss. Any of them answers two questions:

    here(point)        named losses on the passes at the point itself
    elsewhere(point)   groups of named losses at other points

`groups` turns a term into a stream of groups. A group is a function that runs passes and returns named losses that
are final: nothing asked later needs their graph, so they can be back-propagated at once.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import combinations

import torch
from torch import Tensor

from hf_rat.passes.point import Point
from hf_rat.regularizers.divergences import mean_divergence
from hf_rat.regularizers.perturbations import Dropped, Noise, Perturbation

FULL_STRENGTH = 10**12
"""An optimizer step by which every schedule has ended."""

Losses = dict[str, Tensor]
Group = Callable[[], Losses]


class Term:
    """Base of everything that can be asked. See the module's docstring."""

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
    """Mean task loss over `passes` passes, each with its own dropout masks; `dropouts` gives each its rate."""

    passes: int = 1
    dropouts: tuple[float, ...] | None = None

    def here(self, point: Point) -> Losses:
        return {"task": point.task}


@dataclass(frozen=True)
class Consistency(Term):
    """Agreement of the first `passes` passes: mean over the pairs (i < j) of the divergence of i and j."""

    divergence: str
    passes: int = 2

    def here(self, point: Point) -> Losses:
        pairs = list(combinations(point.logits[: self.passes], 2))
        agreement = torch.stack([mean_divergence(point.batch, self.divergence, p, q) for p, q in pairs]).mean()
        return {"consistency": agreement}


@dataclass(frozen=True)
class Smoothness(Term):
    """Agreement of the prediction at a perturbed point with the one here, and the perturbation climbs against it.

    Args:
        at: finds the point.
        divergence: of (here, there).
        fixed: no gradient flows into the prediction here, which then needs no graph while there is sought.
    """

    at: Perturbation
    divergence: str
    fixed: bool = True

    @property
    def learns_here(self) -> bool:
        return not self.fixed

    @property
    def perturb(self) -> Perturbation:
        return self.at

    def _there(self, point: Point) -> Losses:
        here = point.logits[0]

        def climb(there: Tensor) -> Tensor:
            return mean_divergence(point.batch, self.divergence, here.detach(), there)

        ((_, there),) = self.at(point, climb)
        reference = here.detach() if self.fixed else here
        return {"smoothness": mean_divergence(point.batch, self.divergence, reference, there.logits[0])}

    def here(self, point: Point) -> Losses:
        return {} if self.fixed else self._there(point)

    def elsewhere(self, point: Point) -> Iterator[Group]:
        if self.fixed:
            yield lambda: self._there(point)


@dataclass(frozen=True)
class Adversarial(Term):
    """A term asked at the points that a perturbation visits: the mean over them."""

    at: Perturbation
    term: Term = TaskLoss()

    @property
    def learns_here(self) -> bool:
        return False

    @property
    def perturb(self) -> Perturbation:
        return self.at

    def elsewhere(self, point: Point) -> Iterator[Group]:
        name = "noisy" if isinstance(self.at, (Noise, Dropped)) else "adversarial"
        for share, there in self.at(point):
            for group in groups(self.term, there, f"{name}_"):
                yield _weighted(share, group)


@dataclass(frozen=True)
class Proximal(Term):
    """Agreement with a slow average of the model itself (SMART's Bregman proximal point).

    Args:
        divergence: of (average, here).
        beta: how much of the average is kept at each optimizer step.
    """

    divergence: str
    beta: float = 0.99

    def here(self, point: Point) -> Losses:
        if point.batch.teacher is None:
            raise ValueError("the proximal term needs a teacher: run it through Regularization, which keeps one")
        point.batch.forwards += 1
        point.batch.searches += 1
        there = point.batch.teacher(point.batch.inputs)
        return {"proximal": mean_divergence(point.batch, self.divergence, there, point.logits[0])}


@dataclass(frozen=True)
class Scheduled(Term):
    """Plain training before step `begin`, the whole term from step `begin + warmup` on, a linear ramp between.

    The ramp scales what a factor scales: everything but the clean task loss.
    """

    term: Term
    begin: int
    warmup: int

    def parts(self, step: int) -> Iterator[tuple[float, Term]]:
        if step < self.begin:
            yield 1.0, TaskLoss()
            return
        ramp = min(1.0, (step - self.begin + 1) / (self.warmup + 1))
        yield from Scaled(ramp, self.term).parts(step)


def all_terms(term: Term) -> Iterator[Term]:
    """The primitive terms that `term` is made of at full strength, those asked at perturbed points included."""
    for weight, part in term.parts(FULL_STRENGTH):
        if weight > 0:
            yield part
            if isinstance(part, Adversarial):
                yield from all_terms(part.term)


def accumulate(total: Losses, more: Losses) -> None:
    """Add named losses to others, name by name."""
    for name, value in more.items():
        total[name] = total[name] + value if name in total else value


def is_plain(term: Term) -> bool:
    """Whether `term` asks for one clean task loss and nothing else, at every step."""
    parts = [part for weight, part in term.parts(FULL_STRENGTH) if weight > 0]
    return all(isinstance(part, TaskLoss) and part.passes == 1 for part in parts)


def compares_logits(term: Term) -> bool:
    """Whether `term` may ask for predictions, rather than for task losses alone."""
    return not all(isinstance(part, (TaskLoss, Adversarial)) for part in all_terms(term))


def groups(term: Term, point: Point, prefix: str = "") -> Iterator[Group]:
    """Everything `term` asks at `point`, in groups that can be back-propagated one after the other.

    The stream must be advanced only after a group's backward, when `point.batch.streaming`. Names of losses get
    `prefix`.
    """
    parts = [(weight, part) for weight, part in term.parts(point.batch.step) if weight > 0]
    tasks = [part for _, part in parts if isinstance(part, TaskLoss)]
    task = max(tasks, key=lambda part: part.passes, default=None)
    others = [(weight, part) for weight, part in parts if not isinstance(part, TaskLoss)]
    finders = [(part, part.perturb) for _, part in others if part.perturb is not None]
    climbed = {at.site for part, at in finders if at.site and at.rides and isinstance(part, Adversarial)}
    learns = bool(task or climbed or any(part.learns_here for _, part in others))
    point.expect(
        passes=max(
            [task.passes if task else 1] + [part.passes for _, part in others if isinstance(part, Consistency)]
        ),
        rates=task.dropouts if task else None,
        climbed=climbed,
        share_masks=any(at.shares_masks for _, at in finders),
        through={at.through for _, at in finders if at.through},
        graph=learns,
    )

    def here() -> Losses:
        losses = dict(task.here(point)) if task else {}
        alone = True
        for weight, part in others:
            more = part.here(point)
            alone = alone and not more
            accumulate(losses, {name: weight * value for name, value in more.items()})
        point.settle(alone and bool(losses))
        return losses

    if learns:
        yield _weighted(1.0, here, prefix)
    for weight, part in others:
        for group in part.elsewhere(point):
            yield _weighted(weight, group, prefix)


def _weighted(weight: float, group: Group, prefix: str = "") -> Group:
    """The same group with every loss multiplied by `weight` and named `prefix + name`."""
    return lambda: {prefix + name: value if weight == 1 else weight * value for name, value in group().items()}
