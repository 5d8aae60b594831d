"""What is seen on the first batch of a run: whether its passes may run as one batch, in parts, and twice alike.

Only a regularizer whose passes would run so ever looks. What was seen holds until something is switched on or off in
the model: a rate that was zero, a frozen layer.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping
from functools import cached_property, partial
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from hf_rat.engine.engine import Engine
from hf_rat.passes.batch import Pass
from hf_rat.passes.copies import coupled, uneven
from hf_rat.passes.draws import Draws, find_draws
from hf_rat.passes.vocabularies import wide

logger = logging.getLogger(__name__)

T = TypeVar("T")


class FirstBatch:
    """Looks at a model when something must be known of it, and keeps what it saw.

    Args:
        engine: whose processes agree on how passes run, since all must make the same forwards.
        run: (model, inputs) -> (loss, logits).
    """

    def __init__(self, engine: Engine, run: Callable[[nn.Module, dict[str, Any]], Pass]) -> None:
        self._engine, self._model = engine, engine.unwrapped
        self._run = partial(run, self._model)
        self._seen: dict[tuple[Any, ...], Any] = {}
        self._told: set[str] = set()

    def apart_because(self, inputs: Mapping[str, Any]) -> str | None:
        """Why passes over a batch run one by one; None where they run as one batch."""
        device = _device(inputs)
        agreed_on = device if self._engine.processes > 1 else None  # alone, nothing need wait for a GPU
        because = "the gradient of its logits is large" if wide(self._model) else uneven(inputs)
        key = self._key("apart", inputs)
        known, even = self._engine.everywhere(
            torch.tensor([key in self._seen, because is None], device=agreed_on)
        ).tolist()
        if not even:
            because = because or "another process does so"
        else:
            if not known:
                found = self._draws(inputs).shared or coupled(self._run, inputs, self._model, device)
                alike = self._engine.everywhere(torch.tensor([found is None], device=agreed_on)).all()
                self._seen[key] = found or (None if alike else "another process does so")
            because = self._seen[key]
        return self._tell("passes run one by one and not as one batch", because)

    def whole_because(self, inputs: Mapping[str, Any]) -> str | None:
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
        key = self._key("draws", inputs)
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

    def _key(self, what: str, inputs: Mapping[str, Any]) -> tuple[Any, ...]:
        """What was seen holds for: which settings of the model are zero or off, and the kinds of inputs."""
        kinds = tuple((name, x.dim() if isinstance(x, Tensor) else type(x)) for name, x in inputs.items())
        return (what, kinds, *[bool(settings.get(name)) for settings, name in self._settings])

    @cached_property
    def _settings(self) -> list[tuple[dict[str, Any], str]]:
        """Where the rates and switches of the model are: its modules' and those of their configs."""
        found: dict[int, dict[str, Any]] = {}
        for module in self._model.modules():
            found.update((id(place), place) for place in _places(module))
        return [(place, name) for place in found.values() for name, x in place.items() if isinstance(x, bool | float)]


def _places(module: nn.Module) -> Iterator[dict[str, Any]]:
    yield vars(module)
    for value in vars(module).values():
        if not isinstance(value, Tensor | nn.Module | type) and hasattr(value, "__dict__") and not callable(value):
            yield vars(value)


def _device(inputs: Mapping[str, Any]) -> torch.device:
    return next((x.device for x in inputs.values() if isinstance(x, Tensor)), torch.device("cpu"))
