"""What a regularizer reads from the output of a model."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor


def logits_of(outputs: Any, model_name: str) -> Tensor:
    """The logits in a model's output (a ModelOutput or a dict), with what is one distribution in the last axis.

    They are its `logits`, or `start_logits` and `end_logits` (batch, time) as one tensor (batch, 2, time).
    """
    logits = _field(outputs, "logits")
    if isinstance(logits, Tensor):
        return logits
    ends = [_field(outputs, "start_logits"), _field(outputs, "end_logits")]
    if all(isinstance(end, Tensor) for end in ends):
        return torch.stack(ends, dim=1)
    raise ValueError(
        f"{model_name} returned {type(outputs).__name__} without a `logits` tensor, or `start_logits` and "
        "`end_logits`; a regularizer compares logits"
    )


def _field(outputs: Any, name: str) -> Any:
    return outputs.get(name) if isinstance(outputs, Mapping) else getattr(outputs, name, None)
