"""What a regularizer reads from the output of a model: a ModelOutput, a dict, an object with fields, or a tuple."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor


def loss_of(outputs: Any) -> Tensor | None:
    """The task loss in a model's output, by its name, or first in a tuple (or alone); None where there is none."""
    first = outputs[0] if isinstance(outputs, (tuple, list)) and outputs else outputs
    loss = first if isinstance(first, Tensor) and first.dim() == 0 else _field(outputs, "loss")
    return loss if isinstance(loss, Tensor) else None


def logits_of(outputs: Any, model_name: str) -> Tensor:
    """The logits in a model's output, with what is one distribution in the last axis.

    They are its `logits`, or `start_logits` and `end_logits` (batch, time) as one tensor (batch, 2, time). In a tuple
    they are the tensor that comes after the loss, if no other tensor does.

    Raises:
        ValueError: nothing says which tensor they are.
    """
    logits = _field(outputs, "logits")
    if isinstance(logits, Tensor):
        return logits
    ends = [_field(outputs, "start_logits"), _field(outputs, "end_logits")]
    if all(isinstance(end, Tensor) for end in ends):
        return torch.stack(ends, dim=1)
    found = [x for x in outputs if isinstance(x, Tensor) and x.dim() > 0] if isinstance(outputs, (tuple, list)) else []
    if len(found) == 1 and found[0].is_floating_point():
        return found[0]
    several = f" of {len(found)} tensors beside the loss" if found else ""
    raise ValueError(
        f"{model_name} returned {type(outputs).__name__}{several} without a `logits` tensor, or `start_logits` and "
        "`end_logits`, and the regularizer compares logits; return a dict that names them, or (loss, logits)"
    )


def _field(outputs: Any, name: str) -> Any:
    return outputs.get(name) if isinstance(outputs, Mapping) else getattr(outputs, name, None)
