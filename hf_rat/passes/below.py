"""The layers below a cut, run once for one micro-batch, and what its backwards owe them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Any

import torch
from torch import Tensor

from hf_rat.passes.cut import Cut
from hf_rat.passes.execution import Run
from hf_rat.passes.length_buckets import Bucket, join
from hf_rat.passes.running_buffers import RunningBuffers
from hf_rat.passes.sites.geometry import Geometry


class Below:
    """What the layers below a cut put out for one micro-batch; made by running them.

    Args:
        cut: the cut.
        run: inputs -> (loss, logits), of the unwrapped model.
        inputs: of the model.
        split: the batch in buckets of like length, each of which has passes of its own; empty when it is run whole.
        running: the buffers that a forward of the model changes.
    """

    def __init__(
        self,
        cut: Cut,
        run: Run,
        inputs: Mapping[str, Any],
        split: Sequence[Bucket],
        running: RunningBuffers | None,
    ) -> None:
        if not cut.has_looked:
            cut.look(run, inputs, running)
        self._cut, self._split = cut, split
        parts = [bucket.inputs(inputs) for bucket in split] or [dict(inputs)]
        self._crossings = [cut.below(run, part) for part in parts]

    @property
    def share(self) -> float:
        """How much of the layers is above."""
        return self._cut.share

    @property
    def can_copy(self) -> bool:
        """Whether a pass may run several copies of the batch."""
        return self._cut.can_copy

    def above(self, part: int, copies: int, move: Tensor | None, joined: bool) -> AbstractContextManager[None]:
        """A pass inside begins at the cut: see `Cut.above`.

        Args:
            part: which bucket it runs; 0 for the whole batch.
            copies: how many copies of the batch the pass runs.
            move: (copies * batch, time, dim), added to what crosses; None adds nothing.
            joined: the pass's backward goes on down through the layers below.
        """
        return self._cut.above(self._crossings[part], copies, move, joined)

    def geometry(self, inputs: Mapping[str, Any]) -> Geometry:
        """Of what crosses, (batch, time, dim), which has the dropout of the layers below."""
        hidden = self._hidden()
        attention = inputs.get("attention_mask")
        told = isinstance(attention, Tensor) and attention.shape == hidden.shape[:2] and hidden.dim() == 3
        mask = attention.bool() if told else None  # type: ignore[union-attr]
        return Geometry(tuple(hidden.shape), hidden.device, mask, embedding_norm=None, own=self._hidden)

    def _hidden(self) -> Tensor:
        parts = [crossing.hidden.detach() for crossing in self._crossings]  # type: ignore[union-attr]
        return join(parts, self._split) if self._split else parts[0]

    def give_back(self, factor: Tensor) -> Tensor | float:
        """A scalar of value zero, whose backward takes what backwards left at the cut down through the layers below.

        Args:
            factor: a scalar that multiplies it: how that backward scales losses, against how those before did.
        """
        pairs = [pair for crossing in self._crossings for pair in crossing.owed()]
        if not pairs:
            return 0.0
        tensors, gradients = zip(*pairs, strict=True)
        nothing: Tensor = _Owed.apply(factor, gradients, *tensors)
        return nothing


class _Owed(torch.autograd.Function):
    """Zero, whose gradients with respect to some tensors are given."""

    @staticmethod
    def forward(ctx: Any, factor: Tensor, gradients: tuple[Tensor, ...], *tensors: Tensor) -> Tensor:
        ctx.factor, ctx.gradients = factor, gradients
        return torch.zeros((), device=tensors[0].device)

    @staticmethod
    def backward(ctx: Any, upstream: Tensor) -> Any:
        gradients, ctx.gradients = ctx.gradients, None
        return (None, None, *(gradient * (upstream * ctx.factor) for gradient in gradients))
