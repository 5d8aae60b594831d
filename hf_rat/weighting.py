"""How much a micro-batch counts in an optimizer step, and the kind of task that this depends on."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from hf_rat.engine import Engine
from hf_rat.regularizers.dropout import without_trace
from hf_rat.regularizers.problems import IGNORED, counted, has_a_label_per_position, is_labelled, problem_type
from hf_rat.regularizers.terms import Losses


class Weighting:
    """Gives the losses of a micro-batch, which are means over what it has, their share of an optimizer step.

    Args:
        engine: averages gradients over processes and micro-batches.
        run: inputs -> (mean task loss, logits).
    """

    def __init__(self, engine: Engine, run: Callable[[dict[str, Any]], tuple[Tensor | None, Tensor]]) -> None:
        self._engine, self._run = engine, run
        self._shifts: bool | None = None

    def problem(self, inputs: Mapping[str, Any]) -> str:
        """The kind of task of a batch: see regularizers/problems.py."""
        if self.must_ask(inputs):
            self._shifts = False  # until it is known, since the task loss may ask for the kind of task
            self._shifts = not self._first_label_counts(inputs)
        return problem_type(self._engine.unwrapped, inputs, bool(self._shifts))

    def must_ask(self, inputs: Mapping[str, Any]) -> bool:
        """Whether `problem` is going to run the model to learn whether it shifts labels."""
        # Texts that are all empty have no first position; the next batch will be asked.
        return (
            self._shifts is None
            and "labels" in inputs
            and self.by_position(inputs)
            and 0 not in inputs["labels"].shape
        )

    def by_position(self, inputs: Mapping[str, Any]) -> bool:
        """Whether the task loss is a mean over labelled positions, rather than over examples."""
        return is_labelled(inputs) and has_a_label_per_position(self._engine.unwrapped, inputs)

    def counted(self, inputs: Mapping[str, Any]) -> Tensor:
        """How many labels a micro-batch has: what its losses are means over; an integer scalar."""
        return counted(self.problem(inputs), inputs)

    def items(self, samples: Sequence[Mapping[str, Any]], across: bool) -> Tensor | None:
        """The labelled positions of all micro-batches of a step; None where labels are not by position.

        Args:
            samples: the micro-batches of this process.
            across: count those of the other processes too; otherwise each process counts alike.
        """
        if not any(map(self.by_position, samples)):  # one of them may hold targets of a single token only
            return None
        items = torch.stack([self.counted(sample) for sample in samples]).sum()
        return self._engine.sum(items) if across else items * self._engine.processes

    def weight(self, inputs: Mapping[str, Any], items: Tensor | int | None, accumulation: int = 1) -> Tensor | None:
        """The factor with which a mean of weighted means is the mean over all `items`; None: means count alike.

        Args:
            items: `counted` of all micro-batches of the step on all processes, in sum.
            accumulation: micro-batches that are averaged.
        """
        if items is None:
            return None
        own = self.counted(inputs)
        means = accumulation * self._engine.accumulation * self._engine.processes
        return own * means / torch.as_tensor(items, device=own.device).clamp(min=1)

    def _first_label_counts(self, inputs: Mapping[str, Any]) -> bool:
        """Whether the task loss depends on the label of the first position, which nothing predicts in a causal model.

        Asked of the model itself, in two passes without gradients, once. Neither its class nor its config can tell:
        most `ForCausalLM` shift labels, but those of BART and eleven others and XLNet's do not.
        """
        nowhere = torch.full_like(inputs["labels"], IGNORED)
        first = nowhere.clone()
        first[:, 0] = 0
        eager = torch.compiler.set_stance("force_eager")  # nothing is compiled for this
        with without_trace(self._engine.called, nowhere.device), eager:
            at_none, at_first = (self._run({**inputs, "labels": labels})[0] for labels in (nowhere, first))
        assert at_none is not None
        assert at_first is not None
        # A mean over no position is NaN.
        return bool(torch.isfinite(at_first)) and not torch.equal(at_first, at_none)


def weighted(losses: Losses, weight: Tensor | None) -> Losses:
    """The losses, multiplied by the weight."""
    if weight is None:
        return losses
    # A micro-batch in which nothing counts has no mean: its task loss may be NaN.
    return {name: torch.where(weight > 0, weight * value, 0.0) for name, value in losses.items()}
