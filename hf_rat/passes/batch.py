"""One micro-batch, and what passes of a model over it share."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from hf_rat.passes.below import Below
from hf_rat.passes.copies import tile
from hf_rat.passes.cut import Cut
from hf_rat.passes.dropout import DropoutRate, SharedMasks
from hf_rat.passes.execution import Execution
from hf_rat.passes.length_buckets import Bucket, share_casts
from hf_rat.passes.part import Part, take
from hf_rat.passes.problems import LABELS, count_labels, is_labelled, losses_of_examples
from hf_rat.passes.sites import TOP
from hf_rat.passes.sites.base import batch_tensors
from hf_rat.passes.sites.geometry import Geometry
from hf_rat.passes.sites.weights import is_weights
from hf_rat.passes.table_gradient import TableGradient


@dataclass
class Tally:
    """Passes over a batch so far; one over the top of the model is a fraction.

    Attributes:
        forwards: passes run; `searches` of them are never back-propagated to the parameters.
        slopes: passes traversed for a slope alone.
        weight_slopes: those of them that run back to the weights, as far as any backward.
        reruns: passes that run a second time, in the backward.
    """

    forwards: float = 0
    searches: float = 0
    slopes: float = 0
    weight_slopes: float = 0
    reruns: float = 0


@dataclass
class Ahead:
    """What a look at all micro-batches of an optimizer step, before its first backward, tells each of them.

    Attributes:
        masks: of the pass over this micro-batch in which its slopes were taken.
        slopes: site of weights -> the slope of the step's task loss there, (1, weights); its scale means nothing.
    """

    masks: SharedMasks
    slopes: dict[str, Tensor]


@dataclass
class Batch:
    """One micro-batch.

    Args:
        inputs: the model's keyword arguments; batch-first tensors, the labels among them if there are any.
        find_problem: the kind of task, one of `problems.PROBLEMS`, as far as the passes so far have shown it.
        execution: how passes over it run.
        step: the optimizer step that is being made, from 0: terms that begin later compare with it.
        updated: a pass over these examples has updated the running statistics of the model.
        ahead: what a look at all micro-batches of the step has found, where a perturbation asks for it.
        whole: the micro-batch that this is a part of, where it is one.
        rows: (n,) int64, which examples of `whole` these are.
        cut: where passes begin that move nothing below it; None: all passes run the whole model.
        crossed: what the layers below the cut put out for this batch, and for one beside it.

    Attributes:
        tally: passes so far.
        table_gradient: what passes withhold from the embeddings.
        awaited: perturbations whose slopes the next backward leaves in their `grad`.
        rises: (perturbation, its task losses) that `Adaptive` has seen.
        parts: those that were chosen of it.
        joins: the backward of the passes that run now goes on down through the layers below the cut.
    """

    inputs: dict[str, Any]
    find_problem: Callable[[], str]
    execution: Execution
    step: int = 0
    updated: bool = False
    ahead: Ahead | None = None
    whole: Batch | None = None
    rows: Tensor | None = None
    cut: Cut | None = None
    crossed: list[Below] = field(default_factory=list)
    joins: bool = field(default=True, init=False)
    tally: Tally = field(default_factory=Tally, init=False)
    awaited: list[Tensor] = field(default_factory=list, init=False)
    rises: list[tuple[Any, Tensor]] = field(default_factory=list, init=False)
    parts: dict[Part, Batch] = field(default_factory=dict, init=False)

    @cached_property
    def device(self) -> torch.device:
        return next(iter(batch_tensors(self.inputs).values())).device

    @cached_property
    def split(self) -> Sequence[Bucket]:
        """It in buckets of like length; empty when it is run whole."""
        return self.execution.split(self.inputs)

    @property
    def problem(self) -> str:
        return self.find_problem()

    @cached_property
    def table_gradient(self) -> TableGradient:
        owed = None if self.whole is None else self.whole.table_gradient.owed
        return TableGradient(self.inputs, self.execution.open_site, self.execution.may_look_up, owed)

    @cached_property
    def size(self) -> int:
        """Examples."""
        return len(next(iter(batch_tensors(self.inputs).values())))

    def chosen(self, part: Part, logits: Callable[[], Tensor]) -> Batch:
        """The examples of a part; once they are chosen, all that ask for it get the same.

        Args:
            part: how many, and which.
            logits: of the clean pass, by which the hardest are known.

        Raises:
            ValueError: this is a part already, or the hardest of examples without labels are asked for.
        """
        if part not in self.parts:
            if self.whole is not None:
                raise ValueError(f"{part!r} of a part of a batch: only one of the terms can choose among the examples")
            rows = self._choose(part, logits)
            self.parts[part] = Batch(
                take(self.inputs, rows),
                self.find_problem,
                self.execution,
                self.step,
                updated=True,
                whole=self,
                rows=rows,
            )
        return self.parts[part]

    def _choose(self, part: Part, logits: Callable[[], Tensor]) -> Tensor:
        """(n,) int64, ascending."""
        size, count = self.size, part.count(self.size)
        if count == size:
            return torch.arange(size, device=self.device)
        if part.which == "random":  # of two shares the smaller one is in the other
            return self._order[:count].sort().values.to(self.device)
        if not is_labelled(self.inputs):
            raise ValueError(
                f'which={part.which!r} chooses by the task loss, and these examples have no labels; use which="random"'
            )
        found = losses_of_examples(self.problem, self.inputs, logits())
        if found is None:
            raise ValueError(f"which={part.which!r}: nobody can tell the task loss of an example of a {self.problem}")
        return found[0].topk(count).indices.sort().values

    @cached_property
    def _order(self) -> Tensor:
        return self.execution.permute(self.size)

    def weighed(self, loss: Tensor) -> Tensor:
        """A mean over the labels here; of a part, weighted so that on average it is that over the labels of all.

        The weight is 1 where every example has as many labels.
        """
        if self.whole is None:
            return loss
        own, all_ = (count_labels(self.problem, batch.inputs) for batch in (self, self.whole))
        weight = own / self.size / (all_.clamp(min=1) / self.whole.size)
        return torch.where(weight > 0, weight * loss, 0.0)  # without labels the mean is NaN

    @cached_property
    def why_one_by_one(self) -> str | None:
        """Why the passes at a point run one by one; None where they run as one doubled batch."""
        return self.execution.why_one_by_one(self.inputs)

    @cached_property
    def below(self) -> Below:
        """The layers below the cut, run when first asked for."""
        cut, run, running = self.cut, self.execution.below or self.execution.run, self.execution.running
        assert cut is not None
        self.tally.forwards += 1 - cut.share
        with share_casts(self.device):
            found = Below(cut, run, self.inputs, self.split, running)
        self.crossed.append(found)
        return found

    def geometry(self, site: str) -> Geometry:
        if site not in self._geometries:
            where = self.below if site == TOP else self.execution.open_site(site)
            self._geometries[site] = where.geometry(self.inputs)
        return self._geometries[site]

    @cached_property
    def _geometries(self) -> dict[str, Geometry]:
        return {}

    def at_rate(self, rate: float | None) -> AbstractContextManager[Any]:
        """Passes inside have this dropout rate, at 0 they are those of evaluation; None leaves the model's own."""
        if rate is None:
            return nullcontext()
        running = self.execution.running
        return DropoutRate(rate) if running is None else running.at_rate(rate)

    @contextmanager
    def update_buffers(self, search: bool, slope_sites: Collection[str] = ()) -> Iterator[None]:
        """A pass runs inside: running statistics are updated by the first one that is no search, and once.

        That is the clean pass wherever there is one, a doubled batch as one pass. Several clean passes that run one by
        one see the same examples, so that the first stands for them; a recipe without a clean pass (freelb, neftune)
        updates by its first perturbed one. One that moves the weights does by the search that tells where to, which is
        the only pass at the weights themselves.
        """
        first = not self.updated and (not search or any(map(is_weights, slope_sites)))
        self.updated = self.updated or first
        running = self.execution.running
        if running is None:
            yield
            return
        with running.update() if first else running.keep():
            yield

    def tile(self, times: int) -> dict[str, Any]:
        """The batch `times` over: pass after pass along the batch axis."""
        return tile(self.inputs, times)

    def beside(self, unlabeled: Mapping[str, Any]) -> Batch:
        """A second batch without labels, whose kind of task is that of this one: without labels it can be unknown."""
        inputs = {name: value for name, value in unlabeled.items() if name not in LABELS}
        made = Batch(inputs, self.find_problem, self.execution, self.step, updated=True, cut=self.cut)
        made.crossed = self.crossed
        return made

    def shared_masks(self) -> SharedMasks:
        """Random numbers that several passes over this batch are going to draw.

        Raises:
            ValueError: the model draws from something that cannot be put back.
        """
        self.execution.require_repeatable(self.inputs)
        return SharedMasks(self.device)

    def gradient(
        self, loss: Tensor, leaves: Sequence[Tensor], keep_graph: bool, passes: float, to_weights: bool = False
    ) -> tuple[Tensor, ...]:
        self.tally.slopes += passes
        self.tally.weight_slopes += passes * to_weights
        return torch.autograd.grad(self.execution.scale(loss), leaves, retain_graph=keep_graph)

    def skip_group(self) -> None:
        """The group that ran last is not finite and not back-propagated: the slopes that it would leave are zero."""
        for leaf in [*self.awaited, *(leaf for part in self.parts.values() for leaf in part.awaited)]:
            if leaf.grad is None:  # a group that ran before has left the others
                leaf.grad = torch.zeros_like(leaf)
