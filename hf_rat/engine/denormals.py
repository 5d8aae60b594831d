"""Numbers too small for their kind, which a CPU takes ten times as long for."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch


@contextmanager
def without_denormals() -> Iterator[None]:
    """Inside, numbers of less than 1e-38 are zero on a CPU. Gradients that vanish over hundreds of steps are such."""
    before = _flushes()
    torch.set_flush_denormal(True)
    try:
        yield
    finally:
        torch.set_flush_denormal(before)


def _flushes() -> bool:
    return float(torch.tensor([1e-38]) * torch.tensor([1e-3])) == 0.0
