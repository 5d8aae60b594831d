"""Control over the dropout of a forward: replay its masks, change its rate, or do without it and leave no trace."""

from __future__ import annotations

from collections.abc import Container, Iterator
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


def same_state(one: list[torch.Tensor], other: list[torch.Tensor]) -> bool:
    return all(map(torch.equal, one, other))


def set_random_state(state: list[torch.Tensor], device: torch.device) -> None:
    """Go on drawing from what `random_state` returned."""
    torch.set_rng_state(state[0])
    if device.type == "cuda":
        torch.cuda.set_rng_state(state[1], device)


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
