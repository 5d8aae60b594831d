"""What a regularizer asks that needs no labels: asked of a second batch, it makes learning semi-supervised."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import chain
from typing import Any

from hf_rat.passes.batch import Batch
from hf_rat.regularizers.perturbations import Dropped, Noise, Redrawn
from hf_rat.regularizers.recipe import recipes_that
from hf_rat.regularizers.terms import FULL_STRENGTH, Adversarial, Group, TaskLoss, Term, count_groups, groups
from hf_rat.regularizers.weight_terms import Distance, NoisyStart


@dataclass(frozen=True)
class Unlabeled(Term):
    """The terms of another one that need no labels, with their weights and schedules.

    Raises:
        ValueError: there are none.
    """

    term: Term

    def __post_init__(self) -> None:
        if not learns_without_labels(self.term):
            raise ValueError(
                f"{self.term!r} asks nothing of examples without labels; add one of "
                f"{', '.join(recipes_that(learns_without_labels))} to it, or leave the unlabeled examples out"
            )

    def parts(self, step: int) -> Iterator[tuple[float, Term]]:
        for weight, part in self.term.parts(step):
            if not needs_labels(part):
                yield weight, part


def groups_of_both(
    term: Term, batch: Batch, unlabeled: Mapping[str, Any] | None
) -> tuple[Iterator[Group], Batch, int, int]:
    """The groups of a batch and of a second one without labels.

    Returns:
        The groups; the second batch, or the first one where there is no other; how many groups the first has; and how
        many there are.
    """
    stream, count = groups(term, batch), count_groups(term, batch.step)
    if unlabeled is None:
        return stream, batch, count, count
    asked, second = Unlabeled(term), batch.beside(unlabeled)
    stream = chain(stream, groups(asked, second, "unlabeled_"))
    return stream, second, count, count + count_groups(asked, batch.step)


def learns_without_labels(term: Term) -> bool:
    """Whether any part of a regularizer needs no labels."""
    return any(weight > 0 and not needs_labels(part) for weight, part in term.parts(FULL_STRENGTH))


def needs_labels(term: Term) -> bool:
    """Whether a primitive term needs the task loss, for itself or to find its point, or asks nothing of examples."""
    if isinstance(term, Adversarial):
        inner = (part for weight, part in term.term.parts(FULL_STRENGTH) if weight > 0)
        return not isinstance(term.at, (Noise, Dropped, Redrawn)) or any(map(needs_labels, inner))
    return isinstance(term, (TaskLoss, Distance, NoisyStart))
