"""Whether a dropout rate of a pass reaches all that a model draws, seen in passes over the first batch."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from hf_rat.engine.engine import Engine
from hf_rat.passes.batch import Pass
from hf_rat.passes.dropout import DropoutRate, RandomState
from hf_rat.passes.running_buffers import RunningBuffers
from hf_rat.regularizers.perturbations import Redrawn
from hf_rat.regularizers.terms import TaskLoss, Term, all_terms

PASSES = 8
"""Passes that are compared before random numbers are believed to change nothing (a layer that is rarely dropped)."""

ROUNDING, OTHER_KERNELS = 1e-5, 2e-2
"""Differences of logits, in shares of the largest, that mean nothing: in the same pass again, and in evaluation."""


class DropoutLook:
    """Looks once at a model whose passes are to have dropout rates of their own, and refuses it where they cannot.

    Args:
        regularizer: the term.
        engine: of the run.
        run: (model, inputs) -> (task loss, logits).
        running: the buffers of the model that its forward changes.
    """

    def __init__(
        self,
        regularizer: Term,
        engine: Engine,
        run: Callable[[nn.Module, dict[str, Any]], Pass],
        running: RunningBuffers,
    ) -> None:
        self._regularizer, self._engine, self._running = regularizer, engine, running
        self._model = engine.unwrapped
        self._run = partial(run, self._model)
        self._rates: set[float] | None = _rates_of_passes(regularizer)

    def __call__(self, inputs: Mapping[str, Any]) -> None:
        """Run the model a few times on the first batch, without gradients and without a trace.

        Raises:
            ValueError: the model draws what the rate of a pass does not reach, or is another one at rate 0 than in
                evaluation.
        """
        rates, self._rates = self._rates, None
        if not rates:
            return
        name, asked = type(self._model).__name__, repr(self._regularizer)
        with _without_trace(self._running, next(self._model.parameters()).device):
            evaluated, apart = self._passes(inputs, lambda: self._running.at_rate(0.0))
            if apart > ROUNDING:
                raise ValueError(
                    f"{asked} gives a pass its own dropout rate, and {name} is random in evaluation mode too: two "
                    f"passes over the first batch differ by {apart:.2g} of the largest logit; make it draw nothing "
                    "where self.training is False"
                )
            if rates == {0.0}:
                return
            without, apart = self._passes(inputs, lambda: DropoutRate(0.0))
            if apart > ROUNDING:
                raise ValueError(
                    f"{asked} gives a pass its own dropout rate, and {name} draws what no rate reaches: two passes at "
                    f"rate 0 over the first batch differ by {apart:.2g} of the largest logit; use equal rates"
                )
            if (apart := self._largest(_distance(evaluated, without))) > OTHER_KERNELS:
                raise ValueError(
                    f"{asked} gives a pass its own dropout rate, and {name} at rate 0 is not what it is in evaluation "
                    f"mode: over the first batch they differ by {apart:.2g} of the largest logit; use equal rates"
                )

    def _passes(
        self, inputs: Mapping[str, Any], context: Callable[[], AbstractContextManager[Any]]
    ) -> tuple[Tensor, float]:
        """Logits of a pass inside `context`, and how far others are from them; one pass where nothing is drawn."""
        first, largest = None, 0.0
        for _ in range(PASSES):
            before = RandomState(next(self._model.parameters()).device)
            with context():
                seen = self._run(dict(inputs))[1].detach().float()
            first = seen if first is None else first
            idle = RandomState(next(self._model.parameters()).device) == before
            # All processes must make equally many passes.
            largest = self._largest(max(largest, _distance(first, seen)))
            if largest > ROUNDING or self._largest(float(not idle)) == 0.0:
                break
        assert first is not None
        return first, largest

    def _largest(self, number: float) -> float:
        """At least the number, and above a limit on every process where it is on one."""
        if self._engine.processes == 1:
            return number
        return float(self._engine.sum(torch.tensor(number, device=next(self._model.parameters()).device)))


def _rates_of_passes(regularizer: Term) -> set[float]:
    """The dropout rates that a regularizer gives to passes, other than the model's own."""
    terms = list(all_terms(regularizer))
    rates = {rate for term in terms if isinstance(term, TaskLoss) for rate in term.dropouts or ()}
    redrawn = [term.perturb for term in terms if isinstance(term.perturb, Redrawn)]
    return rates | {at.rate for at in redrawn if at.rate is not None}


@contextmanager
def _without_trace(running: RunningBuffers, device: torch.device) -> Iterator[None]:
    """Forwards inside change neither the random numbers of the run nor the buffers, and nothing is compiled."""
    state = RandomState(device)
    try:
        with torch.no_grad(), running.kept(), torch.compiler.set_stance("force_eager"):
            yield
    finally:
        state.restore()
        # Autocast keeps the weights that it has cast, here without a graph.
        torch.clear_autocast_cache()


def _distance(one: Tensor, other: Tensor) -> float:
    """The largest difference in shares of the largest logit; what is infinite in both does not differ."""
    apart = torch.where(one == other, 0.0, (one - other).abs())
    largest = torch.where(one.isfinite(), one.abs(), 0.0).max().clamp(min=1e-12)
    return float(apart.max() / largest)
