"""Control over the random numbers of a forward: replay them, change the rate of its dropout, or leave no trace."""

from __future__ import annotations

import random
from collections.abc import Container, Iterator
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
    """Forwards run inside `replay()` draw the same random numbers, hence the same dropout masks.

    The first one records the state of the random number generators at its start, the later ones start there and give
    the generators back as they were. Works for any model that draws from the global generators, without touching it
    (the official FreeLB code needs patched modeling files for this). Non-reentrant activation checkpointing keeps the
    masks when it recomputes.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._start: RandomState | None = None

    @contextmanager
    def replay(self) -> Iterator[None]:
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


_RATES: dict[Any, tuple[int, str, float]] = {
    **dict.fromkeys((F.dropout, F.dropout1d, F.dropout2d, F.dropout3d), (1, "p", 0.5)),
    **dict.fromkeys((F.alpha_dropout, F.feature_alpha_dropout), (1, "p", 0.5)),
    **dict.fromkeys((torch.dropout, torch.dropout_, torch.feature_dropout, torch.feature_dropout_), (1, "p", 0.0)),
    **dict.fromkeys((torch.alpha_dropout, torch.alpha_dropout_, torch.native_dropout), (1, "p", 0.0)),
    **dict.fromkeys((torch.feature_alpha_dropout, torch.feature_alpha_dropout_), (1, "p", 0.0)),
    F.scaled_dot_product_attention: (4, "dropout_p", 0.0),
    F.multi_head_attention_forward: (10, "dropout_p", 0.0),
}
"""What of torch takes a dropout rate -> (position, name, default) of that argument."""

_RECURRENT = frozenset({torch.lstm, torch.gru, torch.rnn_tanh, torch.rnn_relu})
"""What nn.LSTM, nn.GRU and nn.RNN call: (..., has_biases, num_layers, dropout, ...), by position."""

_BERNOULLI = frozenset({torch.bernoulli, torch.Tensor.bernoulli, torch.Tensor.bernoulli_})


class DropoutRate(TorchFunctionMode):
    """Every dropout that is on inside this context runs at rate `p`, also functional attention dropout.

    It rewrites the rate in the calls of all dropout functions of torch (which its modules make, nn.LSTM and
    nn.MultiheadAttention among them) and of `bernoulli`, with which other layers draw their masks, so no module or
    config is edited. A dropout that is off (rate 0, or eval mode) stays off.

    A mask drawn by `bernoulli(keep)` becomes `bernoulli(1 - p) * keep / (1 - p)`: its mean stays `keep`, whether the
    model divides by it (inverted dropout) or has it in evaluation too (zoneout, rnndrop), and at p = 0 it is that
    mean. Masks of integers and bools are only drawn at the rate.

    Kernels outside torch (flash attention 2) and masks made of `torch.rand` are not reached: callers must refuse them.
    """

    def __init__(self, p: float) -> None:
        super().__init__()
        self.p = p

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        if func in _BERNOULLI:
            return self._drawn(func, args, kwargs)
        if func in _RECURRENT:
            # The first argument that is a bool is has_biases, for padded and for packed inputs.
            place = next(i for i, arg in enumerate(args) if isinstance(arg, bool)) + 2
            if args[place] > 0:
                args = (*args[:place], self.p, *args[place + 1 :])
        elif func is F.dropout or func in _RATES:  # it may have been replaced
            place, name, default = _RATES.get(func, (1, "p", 0.5))
            if len(args) > place:
                if args[place] > 0:
                    args = (*args[:place], self.p, *args[place + 1 :])
            elif kwargs.get(name, default) > 0:
                kwargs[name] = self.p
        return func(*args, **kwargs)

    def _drawn(self, func: Any, args: Any, kwargs: dict[str, Any]) -> Any:
        in_place = func is torch.Tensor.bernoulli_
        keep = args[1] if len(args) > 1 else kwargs.get("p", 0.5 if in_place else None)
        if isinstance(keep, (int, float)):
            if not 0.0 < keep < 1.0:
                return func(*args, **kwargs)
            mask = args[0] if in_place else torch.empty_like(args[0])
            return self._mask(mask, keep, kwargs.get("generator"))
        # A tensor of probabilities that are all the same makes a dropout mask too; others are left as they are.
        drawn = func(*args, **kwargs)
        probability = args[0] if keep is None else keep
        same = (probability == probability.flatten()[:1]).all() & (probability < 1).all() & (probability > 0).all()
        at_rate = self._mask(torch.empty_like(drawn), 1.0, kwargs.get("generator")) * probability
        chosen = torch.where(same, at_rate.to(drawn.dtype), drawn)
        return drawn.copy_(chosen) if in_place else chosen

    def _mask(self, mask: torch.Tensor, keep: float, generator: torch.Generator | None) -> torch.Tensor:
        if not mask.is_floating_point():
            return mask.bernoulli_(1.0 - self.p, generator=generator)
        if self.p == 0:
            return mask.fill_(keep)
        return mask.bernoulli_(1.0 - self.p, generator=generator).mul_(keep / (1.0 - self.p))


@contextmanager
def dropout_at(model: nn.Module, rate: float, normalizing: Container[nn.Module] = ()) -> Iterator[None]:
    """Passes of `model` inside have the dropout rate `rate`; at 0 the model runs as in evaluation.

    In evaluation every random draw is replaced by its expectation, whatever it is and however the model scales it.
    What normalises by statistics of the batch goes on doing so, and torch's own recurrent layers stay in training mode
    at rate 0, as cuDNN has no backward in evaluation.

    Args:
        model: without wrappers.
        rate: in [0, 1).
        normalizing: more modules that stay as they are.
    """
    modes = []
    if rate == 0:
        modes = [m for m in model.modules() if m.training and not (_stays_in_training(m) or m in normalizing)]
    try:
        for module in modes:
            module.training = False
        with DropoutRate(rate):
            yield
    finally:
        for module in modes:
            module.training = True


def _stays_in_training(module: nn.Module) -> bool:
    return hasattr(module, "running_mean") or type(module) in (nn.RNN, nn.LSTM, nn.GRU)


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
    buffers = [(b, b.detach().clone()) for _, _, held in kept for b in held.values() if b is not None]
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
            for buffer, value in buffers:
                if not torch.equal(buffer, value):  # its version does not tell: batch normalisation counts none
                    buffer.copy_(value)
        random_numbers.restore()
