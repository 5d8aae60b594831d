"""The model that training began with, as a model that runs beside the one that is trained."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from hf_rat.engine.averaged_model import AveragedWeights
from hf_rat.passes.dropout import without_trace
from hf_rat.passes.outputs import logits_of
from hf_rat.regularizers.terms import Term, all_terms
from hf_rat.regularizers.weight_terms import Anchored


class Anchor:
    """What the model predicted when training began, without dropout and without gradients.

    Where nothing but adapters (PEFT) is trained it is the same model with its adapters off, and no copy.

    Args:
        model: the unwrapped model, with no hook of ours on it yet.

    Attributes:
        copy: of the model; None where its adapters are switched off.
    """

    def __init__(self, model: nn.Module) -> None:
        self._model = model
        # An average that is never updated stays what the model is now.
        self.copy = None if _trains_adapters_only(model) else AveragedWeights(model, file="anchor.safetensors")

    def logits(self, inputs: dict[str, Any]) -> Tensor:
        """Those of the model that training began with."""
        if self.copy is not None:
            return self.copy.logits(inputs)
        device = next(x.device for x in inputs.values() if isinstance(x, Tensor))
        with without_trace(self._model, device), _adapters_off(self._model):
            return logits_of(self._model(**inputs), type(self._model).__name__)


def anchor_of(regularizer: Term, model: nn.Module) -> Anchor | None:
    """The anchor of a regularizer that asks for one."""
    return Anchor(model) if any(isinstance(term, Anchored) for term in all_terms(regularizer)) else None


def _trains_adapters_only(model: nn.Module) -> bool:
    """Whether all that is trained is in an adapter, whose name is then a part of the weight's."""
    adapters = getattr(model, "peft_config", None)
    if not (adapters and hasattr(model, "disable_adapter")):
        return False
    trained = [name.split(".") for name, parameter in model.named_parameters() if parameter.requires_grad]
    return all(any(adapter in name for adapter in adapters) for name in trained)


@contextmanager
def _adapters_off(model: Any) -> Iterator[None]:
    trained = [(p, p.requires_grad) for p in model.parameters()]
    try:
        with model.disable_adapter(), torch.no_grad():
            yield
    finally:  # PEFT freezes adapters that are off, and trains all that are on
        for parameter, is_trained in trained:
            parameter.requires_grad_(is_trained)
