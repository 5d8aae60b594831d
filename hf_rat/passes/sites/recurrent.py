"""A mask on the recurrent state: one more place where a perturbation enters a model."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any

from torch import nn

from hf_rat.passes.sites.base import Site, batch_tensors
from hf_rat.passes.sites.geometry import Geometry

RECURRENT = "recurrent state"


class RecurrentSite(Site):
    """A mask on the hidden state where it re-enters the last recurrent layer: one per example, the same at all steps.

    The layer is the last module of the model (in the order of `model.modules()`) whose `forward` takes the keyword
    `recurrent_mask`, (batch, hidden), and which has an integer `hidden_size`: what the RNN, LSTM and GRU of
    hf_rat.models offer, and any layer may. A move is (batch, units) in {-1, 0}, and the mask `1 + move`.
    Kept units are scaled by units / (units that are on), and the slope sees that scaling, as in the authors' code for
    sequences of pixels.

    Args:
        model: the unwrapped model.

    Raises:
        ValueError: no module takes `recurrent_mask`, or it has no `hidden_size`.
    """

    def __init__(self, model: nn.Module) -> None:
        super().__init__(model)
        self.module = _last_recurrent(model)
        units = getattr(self.module, "hidden_size", None)
        if not isinstance(units, int):
            raise ValueError(
                f"the {type(self.module).__name__} of {type(model).__name__} takes recurrent_mask but has no integer "
                f"hidden_size (it is {units!r}), so the width of the mask is unknown"
            )
        self._units = units
        self._handle = self.module.register_forward_pre_hook(self._hook, with_kwargs=True)

    def close(self) -> None:
        self._handle.remove()

    def _hook(
        self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]] | None:
        if self.move is None:
            return None
        self.fired = True
        if kwargs.get("recurrent_mask") is not None:
            raise ValueError(
                f"{type(self.model).__name__} gives its {type(module).__name__} a recurrent_mask of its own, and "
                'adversarial_dropout(site="recurrent") another one; leave out the first'
            )
        mask = 1.0 + self.move
        mask = mask * (self._units / mask.sum(-1, keepdim=True).clamp(min=1.0))
        return args, {**kwargs, "recurrent_mask": mask}

    @property
    def unreached(self) -> str:
        return (
            f"the mask never reached the recurrent state of {type(self.model).__name__}: its "
            f"{type(self.module).__name__} did not run"
        )

    def geometry(self, inputs: Mapping[str, Any]) -> Geometry:
        device = next(iter(batch_tensors(inputs).values())).device
        return Geometry(shape=(self.count_examples(inputs), self._units), device=device)


def _last_recurrent(model: nn.Module) -> nn.Module:
    takes = [m for m in model.modules() if "recurrent_mask" in inspect.signature(m.forward).parameters]
    if not takes:
        raise ValueError(
            f"{type(model).__name__} has no layer whose forward takes recurrent_mask, so "
            'adversarial_dropout(site="recurrent") has no mask to choose; use site="logits" or the RNN, LSTM or GRU '
            "of hf_rat.models"
        )
    return takes[-1]
