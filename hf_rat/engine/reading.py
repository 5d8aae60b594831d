"""The loss and the logits of a pass, as far as a regularizer asks for them."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from hf_rat.passes.outputs import logits_of, loss_of
from hf_rat.regularizers.terms import Term, compares_logits


def read(regularizer: Term, outputs: Any, loss: Tensor | None, model_name: str) -> tuple[Tensor | None, Tensor]:
    """The loss and the logits of a pass; where the regularizer asks for no logits, and none can be told, zeros."""
    try:
        return loss, logits_of(outputs, model_name)
    except ValueError:
        if compares_logits(regularizer):
            raise
    return loss, torch.zeros(1, 1)


def call(regularizer: Term, model: nn.Module, inputs: dict[str, Any]) -> tuple[Tensor | None, Tensor]:
    """The loss and the logits of a model that makes its own loss."""
    outputs = model(**inputs)
    return read(regularizer, outputs, loss_of(outputs), type(model).__name__)
