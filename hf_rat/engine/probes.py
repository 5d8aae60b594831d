"""What is seen by looking at a model on the first batch: how its passes may run, and which dropout rates it obeys.

Only a regularizer that depends on it ever looks. Looks are forwards without gradients, and leave no trace.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager
from functools import cached_property, partial
from operator import itemgetter
from typing import Any

import torch
from torch import Tensor, nn

from hf_rat.engine.engine import Engine
from hf_rat.passes.copies import find_coupling, find_uneven, is_wide
from hf_rat.passes.draws import Draws, find_draws
from hf_rat.passes.dropout import DropoutRate, RandomState, without_trace
from hf_rat.passes.execution import Pass
from hf_rat.passes.running_buffers import RunningBuffers
from hf_rat.regularizers.perturbations import Redrawn
from hf_rat.regularizers.terms import TaskLoss, Term, all_terms

logger = logging.getLogger(__name__)

PASSES = 8
"""Passes that are compared before random numbers are believed to change nothing (a layer that is rarely dropped)."""

ROUNDING, OTHER_KERNELS = 1e-5, 2e-2
"""Differences of logits, in shares of the largest, that mean nothing: in the same pass again, and in evaluation."""


class PassProbe:
    """Looks for whether passes may run as one batch, in parts, and twice alike.

    What was seen holds until something is switched on or off in the model: a rate that was zero, a frozen layer.

    Args:
        engine: whose processes agree on how passes run, since all must make the same forwards.
        run: (model, inputs) -> (loss, logits).
    """

    def __init__(self, engine: Engine, run: Callable[[nn.Module, dict[str, Any]], Pass]) -> None:
        self._engine, self._model = engine, engine.unwrapped
        self._run = partial(run, self._model)
        self._seen: dict[tuple[Any, ...], Any] = {}
        self._told: set[str] = set()
        self._values: list[Any] = []
        self._on: tuple[bool, ...] = ()

    def why_one_by_one(self, inputs: Mapping[str, Any]) -> str | None:
        """Why passes over a batch run one by one; None where they run as one batch."""
        device = _device(inputs)
        agreed_on = device if self._engine.processes > 1 else None  # alone, nothing need wait for a GPU
        because = "the gradient of its logits is large" if is_wide(self._model) else find_uneven(inputs)
        key = ("apart", *self._state_of(inputs))
        known, even = self._engine.everywhere(
            torch.tensor([key in self._seen, because is None], device=agreed_on)
        ).tolist()
        if not even:
            because = because or "another process does so"
        else:
            if not known:
                found = self._draws(inputs).shared or find_coupling(self._run, inputs, self._model, device)
                alike = self._engine.everywhere(torch.tensor([found is None], device=agreed_on)).all()
                self._seen[key] = found or (None if alike else "another process does so")
            because = self._seen[key]
        return self._tell("passes run one by one and not as one batch", because)

    def why_not_bucketed(self, inputs: Mapping[str, Any]) -> str | None:
        """Why a batch is not split by length, as far as its random numbers go; None where it may be."""
        return self._tell("batches are not split by length", self._draws(inputs).shared)

    def require_repeatable(self, inputs: Mapping[str, Any]) -> None:
        """Refuse a model whose random numbers cannot be drawn again.

        Raises:
            ValueError: it draws from something else than the global generators of torch, numpy and Python.
        """
        because = self._draws(inputs).unrepeatable
        if because is not None:
            raise ValueError(
                f"this regularizer repeats a pass of {type(self._model).__name__} under the same random numbers, and "
                f"{because}; draw from the global generators of torch, numpy or Python"
            )

    def _draws(self, inputs: Mapping[str, Any]) -> Draws:
        key = ("draws", *self._state_of(inputs))
        if key not in self._seen:
            self._seen[key] = find_draws(self._run, inputs, self._model, _device(inputs))
        return self._seen[key]

    def _tell(self, what: str, because: str | None) -> str | None:
        """Say it once, in one process."""
        if because is not None and what not in self._told:
            self._told.add(what)
            second = torch.distributed.is_initialized() and torch.distributed.get_rank() > 0
            logger.log(
                logging.DEBUG if second else logging.INFO, "%s: %s (%s)", type(self._model).__name__, what, because
            )
        return because

    # -- when to look again ------------------------------------------------------------------------------------------

    def _state_of(self, inputs: Mapping[str, Any]) -> tuple[Any, ...]:
        """What a look holds for: which settings of the model are zero or off, and the kinds of inputs."""
        kinds = tuple((name, x.dim() if isinstance(x, Tensor) else type(x)) for name, x in inputs.items())
        try:
            values = [read(place) for read, place in self._settings]
        except KeyError:  # a module lost one
            del self._settings
            values = [read(place) for read, place in self._settings]
        if values != self._values:
            self._values = values
            self._on = tuple(bool(x) for group in values for x in (group if isinstance(group, tuple) else (group,)))
        return kinds, self._on

    @cached_property
    def _settings(self) -> _Settings:
        return _find_settings(self._model)


_Settings = list[tuple[Callable[[dict[str, Any]], Any], dict[str, Any]]]


def _find_settings(model: nn.Module) -> _Settings:
    """Where the rates and switches of a model are, its modules' and those of their configs, and how all are read.

    They are read for each batch, so one call of C reads all of a module.
    """
    places = {id(place): place for module in model.modules() for place in _find_places(module)}
    names = [([name for name, x in place.items() if isinstance(x, bool | float)], place) for place in places.values()]
    return [(itemgetter(*found), place) for found, place in names if found]


def _find_places(module: nn.Module) -> Iterator[dict[str, Any]]:
    yield vars(module)
    for value in vars(module).values():
        if not isinstance(value, Tensor | nn.Module | type) and hasattr(value, "__dict__") and not callable(value):
            yield vars(value)


def _device(inputs: Mapping[str, Any]) -> torch.device:
    return next((x.device for x in inputs.values() if isinstance(x, Tensor)), torch.device("cpu"))


class RateProbe:
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
        device = next(self._model.parameters()).device
        with without_trace(self._model, device, evaluation=False), self._running.keep():
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


def _distance(one: Tensor, other: Tensor) -> float:
    """The largest difference in shares of the largest logit; what is infinite in both does not differ."""
    if one.numel() == 0:  # texts without a word, and labels by position
        return 0.0
    apart = torch.where(one == other, 0.0, (one - other).abs())
    largest = torch.where(one.isfinite(), one.abs(), 0.0).max().clamp(min=1e-12)
    return float(apart.max() / largest)
