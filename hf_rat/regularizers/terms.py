"""What is asked at a point: the task loss, agreement between passes, agreement with the clean prediction.

A term is a frozen value. Terms add (`a + b`) and scale (`0.5 * a`); a sum has one clean task loss, that of the operand
that asks for most passes, and a factor scales everything but the clean task loss. Any of them answers two questions:

    here(point)        named losses on the passes at the point itself
    elsewhere(point)   groups of named losses at other points, `count_elsewhere(step)` of them

`plan_of` says what a term asks of the passes at a point, and `groups` turns it into a stream of groups. A group is a
function that runs passes and returns named losses that are final: nothing asked later needs their graph, so they can
be back-propagated at once.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import combinations

import torch
from torch import Tensor

from hf_rat.passes.at_part import chosen, first_logits, further, over, task_over
from hf_rat.passes.batch import Batch
from hf_rat.passes.part import Part
from hf_rat.passes.plan import Plan
from hf_rat.passes.point import Point
from hf_rat.regularizers.adaptive import Adaptive
from hf_rat.regularizers.algebra import FULL_STRENGTH, Group, Losses, TaskLoss, Term
from hf_rat.regularizers.divergences import divergence_from, mean_divergence
from hf_rat.regularizers.parts import is_apart, whole
from hf_rat.regularizers.perturbations import Dropped, Noise, Perturbation
from hf_rat.regularizers.weight_perturbations import Mixed
from hf_rat.regularizers.weight_terms import Distance, NoisyStart

_TASK_LOSS = TaskLoss()


@dataclass(frozen=True)
class Consistency(Term):
    """Agreement of the first `passes` passes: mean over the pairs (i < j) of the divergence of i and j."""

    divergence: str
    passes: int = 2
    part: Part | None = None

    def here(self, point: Point) -> Losses:
        batch, logits = chosen(point, self.part), point.logits[: self.passes]
        if batch is not point.batch:
            logits = [z[batch.rows] for z in logits]
            if len(logits) < self.passes:
                assert self.part is not None
                logits += further(point, self.part).logits[: self.passes - len(logits)]
        pairs = list(combinations(logits, 2))
        agreement = torch.stack([mean_divergence(batch, self.divergence, p, q) for p, q in pairs]).mean()
        return {"consistency": agreement}


@dataclass(frozen=True)
class Smoothness(Term):
    """Agreement of the prediction at a perturbed point with the one here, and the perturbation climbs against it.

    Args:
        at: finds the point.
        divergence: of (here, there).
        fixed: no gradient flows into the prediction here, which then needs no graph while there is sought.
        part: over which the other passes run.
    """

    at: Perturbation
    divergence: str
    fixed: bool = True
    part: Part | None = None

    @property
    def learns_here(self) -> bool:
        return not self.fixed

    @property
    def perturb(self) -> Perturbation:
        return self.at

    def _there(self, point: Point) -> Losses:
        batch, start = chosen(point, self.part), _start(self, point)
        clean = start.logits[0].detach()  # before the search draws random numbers of its own

        def climb(there: Tensor) -> Tensor:
            return mean_divergence(start.batch, self.divergence, clean, there)

        ((_, there),) = self.at(start, climb)
        here = first_logits(start, batch)
        reference = here.detach() if self.fixed else here
        other = over(there, batch, there.plan).logits[0]
        return {"smoothness": mean_divergence(batch, self.divergence, reference, other)}

    def here(self, point: Point) -> Losses:
        return {} if self.fixed else self._there(point)

    def elsewhere(self, point: Point) -> Iterator[Group]:
        if self.fixed:
            yield lambda: self._there(point)

    def count_elsewhere(self, step: int) -> int:
        return int(self.fixed)


@dataclass(frozen=True)
class Adversarial(Term):
    """A term asked at the points that a perturbation visits: the mean over them.

    Args:
        at: finds the points.
        term: what is asked there.
        part: over which it is asked.
    """

    at: Perturbation
    term: Term = _TASK_LOSS
    part: Part | None = None

    @property
    def learns_here(self) -> bool:
        return False

    @property
    def perturb(self) -> Perturbation:
        return self.at

    def elsewhere(self, point: Point) -> Iterator[Group]:
        name = "noisy" if isinstance(self.at, (Noise, Dropped, Mixed)) else "adversarial"
        plan = plan_of(self.term, point.batch.step)
        for share, moved in self.at(_start(self, point), plan=plan):
            there = over(moved, chosen(point, self.part), moved.plan)
            for group in groups_at(there, self.term, f"{name}_"):
                yield _weigh(share, self._seen(group, point, f"{name}_task"))

    def _seen(self, group: Group, point: Point, task: str) -> Group:
        """The same group, whose task loss an adaptive perturbation sees."""
        at = self.at
        if not isinstance(at, Adaptive):
            return group

        def seen() -> Losses:
            losses = group()
            if task in losses:
                at.see(point, task_over(point, self.part), losses[task])
            return losses

        return seen

    def count_elsewhere(self, step: int) -> int:
        return self.at.visits * count_groups(self.term, step)


@dataclass(frozen=True)
class Proximal(Term):
    """Agreement with a slow average of the model itself (SMART's Bregman proximal point, a mean teacher).

    Args:
        divergence: of (average, here).
        beta: how much of the average is kept at each optimizer step.
        part: over which the average runs.
    """

    divergence: str
    beta: float = 0.99
    part: Part | None = None

    def here(self, point: Point) -> Losses:
        teacher = point.batch.execution.teacher
        if teacher is None:
            raise ValueError("the proximal term needs a teacher: run it through Regularization, which keeps one")
        batch = chosen(point, self.part)
        return {"proximal": divergence_from(teacher, batch, self.divergence, first_logits(point, batch))}


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


def is_plain(term: Term, step: int = FULL_STRENGTH) -> bool:
    """Whether `term` asks for one clean task loss and nothing else at a step, by default at every one."""
    parts = [part for weight, part in term.parts(step) if weight > 0]
    return all(isinstance(part, TaskLoss) and part.passes == 1 for part in parts)


def compares_logits(term: Term) -> bool:
    """Whether `term` may ask for predictions, rather than for task losses alone."""
    return not all(isinstance(part, (TaskLoss, Adversarial, Distance, NoisyStart)) for part in all_terms(term))


def plan_of(term: Term, step: int) -> Plan:
    """What `term` is going to ask of the passes at its point at optimizer step `step`."""
    task, others = _split(term, step)
    finders = [(part, part.perturb) for _, part in others if part.perturb is not None and not is_apart(part)]
    graph = bool(task) or any(part.learns_here for _, part in others)
    # Passes that nothing is learned from are made for each slope by itself, and keep no graph for the others.
    slope_sites = frozenset(
        at.site for part, at in finders if graph and at.site and at.uses_clean_slope and isinstance(part, Adversarial)
    )
    counted = [part for part in [task, *(part for _, part in others)] if isinstance(part, (TaskLoss, Consistency))]
    passes = max([1, *(part.passes for part in counted if part.part is None)])
    more: dict[Part, int] = {}
    for asked in counted:
        if asked.part is not None and asked.passes > passes:
            more[asked.part] = max(asked.passes - passes, more.get(asked.part, 0))
    return Plan(
        passes=passes,
        further=tuple(more.items()),
        rates=task.dropouts if task else None,
        slope_sites=slope_sites,
        share_masks=any(at.shares_masks for _, at in finders),
        also_masks=frozenset(at.also_masks for _, at in finders if at.also_masks),
        graph=graph,
    )


def count_groups(term: Term, step: int) -> int:
    """How many groups `groups` yields at optimizer step `step`."""
    elsewhere = (part.count_elsewhere(step) for _, part in _split(term, step)[1])
    return int(plan_of(term, step).graph) + sum(elsewhere)


def groups(term: Term, batch: Batch, prefix: str = "") -> Iterator[Group]:
    """Everything `term` asks of a batch, in groups that can be back-propagated one after the other.

    The stream must be advanced only after a group's backward, where the batch's groups are streaming. Names of losses
    get `prefix`.
    """
    yield from groups_at(Point(batch, plan=plan_of(term, batch.step)), term, prefix)


def groups_at(point: Point, term: Term, prefix: str = "") -> Iterator[Group]:
    """The same at a point that was made with the plan of `term`."""
    task, others = _split(term, point.batch.step)

    def here() -> Losses:
        losses = dict(task.here(point)) if task else {}
        alone = True
        for weight, part in others:
            more = part.here(point)
            alone = alone and not more
            accumulate(losses, {name: weight * value for name, value in more.items()})
        point.take_slopes(alone and bool(losses))
        return losses

    if point.plan.graph:
        yield _weigh(1.0, here, prefix)
    for weight, part in others:
        for group in part.elsewhere(point):
            yield _weigh(weight, group, prefix)


def _split(term: Term, step: int) -> tuple[TaskLoss | None, list[tuple[float, Term]]]:
    """The task loss of most passes that is asked for, and the other terms with their weights."""
    parts = [(weight, part) for weight, part in term.parts(step) if weight > 0]
    tasks = [part for _, part in parts if isinstance(part, TaskLoss)]
    others = [(weight, part) for weight, part in parts if not isinstance(part, TaskLoss)]
    return max(tasks, key=lambda part: (part.passes, part.part is None), default=None), others


def _start(term: Term, point: Point) -> Point:
    """Where the search of a term begins: here, or at a first pass over its part alone."""
    if not is_apart(term):
        return point
    return over(point, chosen(point, term.part), plan_of(whole(term), point.batch.step))


def _weigh(weight: float, group: Group, prefix: str = "") -> Group:
    """The same group with every loss multiplied by `weight` and named `prefix + name`."""
    return lambda: {prefix + name: value if weight == 1 else weight * value for name, value in group().items()}
