"""A part of a micro-batch: the examples over which the passes run that a regularizer makes beside the clean one."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor

CHOICES = ("random", "hardest")


@dataclass(frozen=True)
class Part:
    """Some examples of every micro-batch.

    Args:
        share: of the examples, in (0, 1).
        which: "random", or the "hardest", those of highest task loss in the clean pass.
    """

    share: float
    which: str = "random"

    def count(self, examples: int) -> int:
        """How many of a micro-batch: the share, rounded, and at least one.

        A mean over any number of examples that are chosen at random is, on average, that over all.
        """
        return max(1, round(self.share * examples))


def take(inputs: Mapping[str, Any], rows: Tensor) -> dict[str, Any]:
    """Rows of a batch whose tensors have one length; single values, which all share, stay.

    Args:
        inputs: of the model.
        rows: (n,) int64.
    """
    return {name: x[rows] if isinstance(x, Tensor) and x.dim() > 0 else x for name, x in inputs.items()}
