"""Control over the dropout of a forward: replay its masks, change its rate, or do without it and leave no trace."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode


class SharedMasks:
    """Forwards run inside `replayed()` draw the same random numbers, hence the same dropout masks.

    The first one records the state of the random number generators at its start, the later ones start there and give
    the generators back as they were. Works for any model, without touching it (the official FreeLB code needs
    patched modeling files for this). Non-reentrant activation checkpointing keeps the masks when it recomputes.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._start: list[torch.Tensor] | None = None

    @contextmanager
    def replayed(self) -> Iterator[None]:
        if self._start is None:
            self._start = random_state(self._device)
            yield
            return
        after = random_state(self._device)
        set_random_state(self._start, self._device)
        try:
            yield
        finally:
            set_random_state(after, self._device)


def random_state(device: torch.device) -> list[torch.Tensor]:
    """What the random numbers of a forward on `device` are drawn from."""
    state = [torch.get_rng_state()]
    if device.type == "cuda":
        state.append(torch.cuda.get_rng_state(device))
    return state


def set_random_state(state: list[torch.Tensor], device: torch.device) -> None:
    """Go on drawing from what `random_state` returned."""
    torch.set_rng_state(state[0])
    if device.type == "cuda":
        torch.cuda.set_rng_state(state[1], device)


class DropoutRate(TorchFunctionMode):
    """Every dropout that is on inside this context runs at rate `p`, also functional attention dropout.

    It rewrites the rate in the calls of `torch.nn.functional.dropout` (which nn.Dropout makes), of
    `scaled_dot_product_attention` and of `Tensor.bernoulli_(1 - rate)` (which draws the 0/1 masks of recurrent
    layers), so no module or config is edited. A dropout that is off (rate 0, or eval mode)
    stays off. Kernels outside torch (flash attention 2) are not reached: callers must refuse them.
    """

    def __init__(self, p: float) -> None:
        super().__init__()
        self.p = p

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        if func is F.dropout:
            positional = dict(zip(("input", "p", "training", "inplace"), args, strict=False))
            kwargs = {"p": 0.5, "training": True, **positional, **kwargs}
            args = ()
            if kwargs["p"] > 0 and kwargs["training"]:
                kwargs["p"] = self.p
        elif func is F.scaled_dot_product_attention:
            names = ("query", "key", "value", "attn_mask", "dropout_p", "is_causal")
            kwargs = {**dict(zip(names, args, strict=False)), **kwargs}
            args = ()
            if kwargs.get("dropout_p", 0.0) > 0:
                kwargs["dropout_p"] = self.p
        elif func is torch.Tensor.bernoulli_:
            args, kwargs = (args[0], 1.0 - self.p), {}
        return func(*args, **kwargs)


@contextmanager
def without_trace(model: nn.Module, device: torch.device) -> Iterator[None]:
    """Forwards of `model` inside only look at it: evaluation mode, no gradients, and the run's random numbers stay."""
    modes = [(module, module.training) for module in model.modules()]
    try:
        model.eval()
        with torch.no_grad(), torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
            yield
    finally:
        for module, training in modes:
            module.training = training
