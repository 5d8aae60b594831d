"""A measurement leaves its model as it found it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn


@contextmanager
def unchanged(model: nn.Module) -> Iterator[None]:
    """Inside, the model is in evaluation mode and its weights may be written to.

    Afterwards, also after an exception, each module's mode, all weights, buffers and gradients (bit for bit) and the
    random state are what they were. It takes the memory of a copy of the weights.
    """
    modes = [(module, module.training) for module in model.modules()]
    tensors = [*model.parameters(), *model.buffers()]
    held = [(x, x.detach().clone()) for x in tensors]
    slopes = [(p, p.grad, None if p.grad is None else p.grad.clone()) for p in model.parameters()]
    places = [(module, name, x) for module in model.modules() for name, x in module._buffers.items()]
    devices = sorted({x.get_device() for x in tensors if x.is_cuda})
    with torch.random.fork_rng(devices=devices):
        model.eval()
        try:
            yield
        finally:
            for module, name, buffer in places:
                module._buffers[name] = buffer
            with torch.no_grad():
                for x, copy in held:
                    x.copy_(copy)
                for parameter, slope, value in slopes:
                    parameter.grad = slope
                    if slope is not None:
                        slope.copy_(value)
            for module, mode in modes:
                module.training = mode
