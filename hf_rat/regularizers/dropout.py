"""Control over the random numbers of a forward: replay them, change the rate of its dropout, or leave no trace."""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode


class RandomState:
    """What the random numbers of a forward on `device` are drawn from, as it is now: the global generators of torch,
    numpy (SpecAugment draws from it) and Python. Two are equal if the same numbers would follow.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._torch = torch_state(device)
        self._numpy: Any = np.random.get_state()
        self._python = random.getstate()

    def __eq__(self, other: object) -> bool:
        return isinstance(other, RandomState) and self.moved(other) is None

    __hash__ = None  # type: ignore[assignment]

    def moved(self, since: RandomState) -> str | None:
        """Whose random numbers were drawn since; None: nobody's."""
        mine, other = (one._numpy for one in (self, since))
        if self._python != since._python:
            return "Python"
        if not (np.array_equal(mine[1], other[1]) and mine[2:] == other[2:]):
            return "numpy"
        return None if same_state(self._torch, since._torch) else "torch"

    def restore(self) -> None:
        """Go on drawing from here."""
        torch.set_rng_state(self._torch[0])
        if self._device.type == "cuda":
            torch.cuda.set_rng_state(self._torch[1], self._device)
        np.random.set_state(self._numpy)
        random.setstate(self._python)


def torch_state(device: torch.device) -> list[Tensor]:
    """The states of torch's generators for a forward on `device`."""
    state = [torch.get_rng_state()]
    if device.type == "cuda":
        state.append(torch.cuda.get_rng_state(device))
    return state


def same_state(one: list[Tensor], other: list[Tensor]) -> bool:
    return all(map(torch.equal, one, other))


class SharedMasks:
    """Forwards run inside `replayed()` draw the same random numbers, hence the same dropout masks.

    The first one records the state of the random number generators at its start, the later ones start there and give
    the generators back as they were. Works for any model that draws from the global generators, without touching it
    (the official FreeLB code needs patched modeling files for this). Non-reentrant activation checkpointing keeps the
    masks when it recomputes.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._start: RandomState | None = None

    @contextmanager
    def replayed(self) -> Iterator[None]:
        if self._start is None:
            self._start = RandomState(self._device)
            yield
            return
        after = RandomState(self._device)
        self._start.restore()
        try:
            yield
        finally:
            after.restore()


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
def without_trace(model: nn.Module, device: torch.device, evaluation: bool = True) -> Iterator[None]:
    """Forwards of `model` inside only look at it: no gradients, nothing compiled, and all stays as it was.

    Args:
        model: the unwrapped model. Its buffers and the attributes of its modules are put back.
        device: whose random numbers go on as if nothing had been drawn; so do numpy's and Python's.
        evaluation: in evaluation mode; otherwise in the mode in which the model is.
    """
    random_numbers, cached = RandomState(device), torch.is_autocast_cache_enabled()
    kept = [(module, dict(vars(module)), dict(module._buffers)) for module in model.modules()]
    buffers = [(b, b._version, b.detach().clone()) for _, _, held in kept for b in held.values() if b is not None]
    try:
        if evaluation:
            model.eval()
        # A weight that autocast casts here has no graph: the passes that need one must not find it.
        torch.set_autocast_cache_enabled(False)
        with torch.no_grad(), torch.compiler.set_stance("force_eager"):
            yield
    finally:
        torch.set_autocast_cache_enabled(cached)
        for module, attributes, held in kept:
            for now, before in ((vars(module), attributes), (module._buffers, held)):
                for name in now.keys() - before.keys():
                    del now[name]
                now.update(before)
        with torch.no_grad():
            for buffer, version, value in buffers:
                if buffer._version != version:
                    buffer.copy_(value)
        random_numbers.restore()
