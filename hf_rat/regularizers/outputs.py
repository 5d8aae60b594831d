"""What a regularizer reads from the output of a model."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor


def logits_of(outputs: Any, model_name: str) -> Tensor:
    """The `logits` of a model's output (a ModelOutput or a dict)."""
    logits = outputs.get("logits") if isinstance(outputs, Mapping) else getattr(outputs, "logits", None)
    if not isinstance(logits, Tensor):
        raise ValueError(
            f"{model_name} returned {type(outputs).__name__} without a `logits` tensor; a regularizer compares logits"
        )
    return logits
