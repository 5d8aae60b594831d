"""One micro-batch, and what it takes to run passes of a model over it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from hf_rat.passes.dropout import DropoutRate, SharedMasks
from hf_rat.passes.length_buckets import Bucket
from hf_rat.passes.running_buffers import RunningBuffers
from hf_rat.passes.sites import Site
from hf_rat.passes.sites.geometry import Place

Pass = tuple[Tensor | None, Tensor]
"""Mean task loss, or None without labels; logits."""

Run = Callable[[dict[str, Any]], Pass]


@dataclass
class Batch:
    """One micro-batch and what it takes to run passes over it.

    Args:
        inputs: the model's keyword arguments; batch-first tensors, the labels among them if there are any.
        run: inputs -> (mean task loss or None without labels, logits).
        open_site: name of a site -> the site, opened on the model on first use.
        problem: one of `problems.PROBLEMS`.
        step: the optimizer step that is being made, from 0: terms that begin later compare with it.
        streaming: groups are back-propagated one by one, so that a slope may ride on a backward; otherwise all
            graphs are kept for one backward and slopes are taken separately.
        slopes_apart: a slope that was announced is taken in passes of its own, because the engine cannot traverse a
            graph twice.
        no_sync: passes of a search run inside this context (gradients of parameters are not computed there).
        scale: multiplies a loss before a slope is taken (the fp16 loss scale; slopes are used for direction only).
        teacher: inputs -> logits of the averaged model, for SMART's proximal term.
        may_look_up: the embeddings may be looked up outside the model's own forward.
        rerun: like `run`, for passes that keep no activations and run again in the backward; None keeps all of them.
            It runs the model without what wraps it (DDP prepares its gradient exchange in each forward).
        split: the batch in buckets of like length; empty when it is run whole.
        refined: the same or another kind of task, as far as the passes have shown it.
        frames: (inputs, logits) -> (batch, frames) bool, which outputs of a `ctc` are not padding; None: all of them.
        apart_because: inputs -> why the passes at a point run one by one; None where they run as one doubled batch.
        require_repeatable: raises a ValueError where a pass cannot draw the same random numbers again.
        running: the buffers of the model that its forward changes (running statistics); None lets passes change them.
        updated: a pass over this batch has updated them.

    Attributes:
        forwards: passes run so far; `searches` of them are never back-propagated to the parameters.
        slopes: passes traversed so far for a slope alone.
        reruns: passes that run a second time, in the backward.
        owing: (site, leaf) of the passes that withheld a gradient; it lies in the leaf's `grad`.
    """

    inputs: dict[str, Any]
    run: Run
    open_site: Callable[[str], Site]
    problem: str
    step: int = 0
    streaming: bool = True
    slopes_apart: bool = False
    no_sync: Callable[[], AbstractContextManager[Any]] = nullcontext
    scale: Callable[[Tensor], Tensor] = lambda loss: loss
    teacher: Callable[[dict[str, Any]], Tensor] | None = None
    may_look_up: bool = False
    rerun: Run | None = None
    split: Sequence[Bucket] = ()
    refined: Callable[[str], str] = lambda problem: problem
    frames: Callable[[Mapping[str, Any], Tensor], Tensor | None] = lambda inputs, logits: None
    apart_because: Callable[[dict[str, Any]], str | None] = lambda inputs: None
    require_repeatable: Callable[[dict[str, Any]], None] = lambda inputs: None
    running: RunningBuffers | None = None
    updated: bool = False
    forwards: int = 0
    searches: int = 0
    slopes: int = 0
    reruns: int = 0
    owing: list[tuple[str, Tensor]] = field(default_factory=list)
    _places: dict[str, Place] = field(default_factory=dict)

    @cached_property
    def size(self) -> int:
        return self._first.shape[0]

    @property
    def device(self) -> torch.device:
        return self._first.device

    @cached_property
    def _first(self) -> Tensor:
        for value in self.inputs.values():
            if isinstance(value, Tensor) and value.dim() > 0:
                return value
        raise ValueError(f"the batch holds no tensors (its keys: {', '.join(self.inputs) or 'none'})")

    def looked_up(self, site: str) -> Tensor | None:
        """What `site` puts out, (batch, time, dim), where that is a look-up in a table that is learned; else None.

        Passes that take it from here, rather than from the model, give the table its gradient, which is as large as
        the table, at the end and together, when their activations are gone.
        """
        return self.open_site(site).looked_up(self.inputs) if self.may_look_up else None

    def place(self, site: str) -> Place:
        if site not in self._places:
            self._places[site] = self.open_site(site).place(self.inputs)
        return self._places[site]

    def at_rate(self, rate: float | None) -> AbstractContextManager[Any]:
        """Passes inside have this dropout rate, at 0 they are those of evaluation; None leaves the model's own."""
        if rate is None:
            return nullcontext()
        return DropoutRate(rate) if self.running is None else self.running.at_rate(rate)

    @contextmanager
    def updating(self, search: bool) -> Iterator[None]:
        """A pass runs inside: running statistics are updated by the first one that is no search, and once.

        That is the clean pass wherever there is one, a doubled batch as one pass. Several clean passes that run one by
        one see the same examples, so that the first stands for them; a recipe without a clean pass (freelb, neftune)
        updates by its first perturbed one.
        """
        first = not (search or self.updated)
        self.updated = self.updated or first
        if self.running is None:
            yield
            return
        with self.running.updated() if first else self.running.kept():
            yield

    def tiled(self, times: int) -> dict[str, Any]:
        """The batch `times` over: pass after pass along the batch axis."""
        return tiled(self.inputs, times)

    def shared_masks(self) -> SharedMasks:
        """Random numbers that several passes over this batch are going to draw.

        Raises:
            ValueError: the model draws from something that cannot be put back.
        """
        self.require_repeatable(self.inputs)
        return SharedMasks(self.device)

    def gradient(
        self, loss: Tensor, leaves: Sequence[Tensor], keep_graph: bool, passes: int = 1
    ) -> tuple[Tensor, ...]:
        self.slopes += passes
        return torch.autograd.grad(self.scale(loss), leaves, retain_graph=keep_graph)


def tiled(inputs: Mapping[str, Any], times: int) -> dict[str, Any]:
    """Inputs that are all single values, or tensors of the batch's length, `times` over along the batch axis."""
    return {
        name: value.repeat(times, *[1] * (value.dim() - 1)) if isinstance(value, Tensor) and value.dim() > 0 else value
        for name, value in inputs.items()
    }
