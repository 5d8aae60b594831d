"""Models with adapters around them."""

from __future__ import annotations

from typing import Any


def without_adapters(model: Any) -> Any:
    """The model that adapters (PEFT) are around; without adapters, the model itself."""
    base = getattr(model, "get_base_model", None)
    return base() if callable(base) else model
