"""A measurement that writes to a model's weights and gradients leaves them as it found them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn

from hf_rat.passes.dropout import without_trace


@contextmanager
def unchanged(model: nn.Module) -> Iterator[None]:
    """Inside, the model is in evaluation mode, and weights and gradients may be written to.

    Afterwards, also after an exception, they are what they were, bit for bit, and so is all that `without_trace` puts
    back: modes, buffers, attributes of modules, random states. It takes the memory of a copy of the weights.
    """
    weights = [(p, p.detach().clone(), p.grad) for p in model.parameters()]
    slopes = [(p.grad, p.grad.clone()) for p in model.parameters() if p.grad is not None]
    with without_trace(model, next(model.parameters()).device), torch.enable_grad():
        try:
            yield
        finally:
            with torch.no_grad():
                for p, weight, slope in weights:
                    p.copy_(weight)
                    p.grad = slope
                for slope, value in slopes:
                    slope.copy_(value)
