"""The recurrent dropouts: their rates, and the masks that they draw. It travels with a checkpoint."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from .padding import Rows

PER_STEP = ("variational", "recurrent", "rnndrop")
FORWARD = ("input", "hidden", "output")
"""The rates of forward dropout, on what is not recurrent."""


@dataclass
class Dropouts:
    """The rates (probability of dropping, in [0, 1)) of all dropouts of a layer; they combine. Default: none.

    A mask belongs to one example and stays fixed over its steps, unless said otherwise. Each layer and direction draws
    its own. Rates may be changed between forwards (schedules).

    Args:
        variational: on h_{t-1} where it enters the gates, kept / (1 - p); test: identity (Gal & Ghahramani 2016; .3 in
            their language models). The carry z * h of a GRU stays whole.
        variational_x: the same on the input x_t of each layer.
        variational_per: "example", or "batch": one pair of masks for the whole batch, which torch's own layer can run.
        per_gate: separate variational masks for each gate (Gal's "untied" code) instead of one for all.
        recurrent: on the update g of LSTM and GRU, on h_{t-1} where it enters an RNN (Semeniuta et al. 2016). As
            published: unscaled, test: * (1 - p).
        rnndrop: on the cell c_t, for a GRU on h_t (Moon et al. 2015). As published: unscaled, test: * (1 - p) at each
            step, so the memory fades at test; this reproduces its collapse on long sequences.
        zoneout: probability of keeping the old hidden state; new masks at each step; test: the expectation
            (Krueger et al. 2017: .05 with zoneout_cell .5 on characters and words).
        zoneout_cell: the same for the cell of an LSTM. As in the paper's equation, h reads the cell before zoneout.
        dropconnect: on the entries of weight_hh, kept / (1 - p); test: the mean weights (.5 in AWD-LSTM, Merity 2018).
        dropconnect_per: "batch", one mask for each forward as AWD-LSTM, or "example" as Wan et al. 2013 (whose moment
            matching at test is not followed); that takes batch times the memory of weight_hh.
        dropconnect_bias: drop entries of bias_hh too, as Wan et al.
        input, hidden, output: locked dropout on the layer's input, between stacked layers and on the output, kept /
            (1 - p) (AWD-LSTM: .4, .25 and .4 on PTB).
        layers: between stacked layers, new at each step: the `dropout` of torch.nn.LSTM.
        per_step: which of "variational" (with variational_x), "recurrent", "rnndrop" and, as Zaremba et al. 2014 drop
            what is not recurrent, "input", "hidden", "output" draw new masks at each step.

    Raises:
        ValueError: a rate outside [0, 1), an unknown name, or dropconnect_bias without dropconnect.
    """

    variational: float = 0.0
    variational_x: float = 0.0
    variational_per: str = "example"
    per_gate: bool = False
    recurrent: float = 0.0
    rnndrop: float = 0.0
    zoneout: float = 0.0
    zoneout_cell: float = 0.0
    dropconnect: float = 0.0
    dropconnect_per: str = "batch"
    dropconnect_bias: bool = False
    input: float = 0.0
    hidden: float = 0.0
    output: float = 0.0
    layers: float = 0.0
    per_step: Sequence[str] = ()

    def __post_init__(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            if field.type == "float" and not (isinstance(value, (int, float)) and 0.0 <= value < 1.0):
                raise ValueError(f"dropout {field.name}={value!r} is not a rate in [0, 1)")
        for name in ("variational_per", "dropconnect_per"):
            if (value := getattr(self, name)) not in ("batch", "example"):
                raise ValueError(f"dropout {name}={value!r} is neither 'batch' nor 'example'")
        self.per_step = [self.per_step] if isinstance(self.per_step, str) else list(self.per_step)
        if unknown := set(self.per_step) - {*PER_STEP, *FORWARD}:
            known = ", ".join(PER_STEP + FORWARD)
            raise ValueError(f"dropout per_step={sorted(unknown)} is unknown; it may name {known}")
        if self.dropconnect_bias and not self.dropconnect:
            raise ValueError("dropout dropconnect_bias=True has no rate without dropconnect; set dropconnect above 0")
        if "variational" in self.per_step and self.variational_per == "batch":
            raise ValueError("dropout variational_per='batch' has no masks per_step; use variational_per='example'")

    @classmethod
    def of(cls, value: Dropouts | Mapping[str, Any] | float) -> Dropouts:
        """Read a mapping of the fields (as in a config.json), or one rate as torch's `dropout` between layers."""
        if isinstance(value, Dropouts):
            return value
        if not isinstance(value, Mapping):
            return cls(layers=value)
        known = [field.name for field in fields(cls)]
        if unknown := set(value) - set(known):
            raise ValueError(f"dropout {', '.join(sorted(unknown))} is unknown; it may be {', '.join(known)}")
        return cls(**value)

    def set(self) -> dict[str, Any]:
        """What differs from the default."""
        found = {field.name: getattr(self, field.name) for field in fields(self)}
        usual = {field.name: field.default for field in fields(self)} | {"per_step": []}
        return {name: value for name, value in found.items() if value != usual[name]}


class Masks(NamedTuple):
    """The masks of one layer and direction: (batch, hidden or 1) sorted, or (1, rows, hidden) when drawn per step."""

    hidden: Tensor | None = None  # on h into the gates; per gate (batch, gates, hidden) or (1, rows, gates, hidden)
    update: Tensor | None = None  # on g
    cell: Tensor | None = None  # on c, of a GRU on h
    new_cell: Tensor | None = None  # where c is replaced (zoneout)
    new_hidden: Tensor | None = None  # where h is


def draw_inverted(shape: tuple[int, ...], rate: float, like: Tensor) -> Tensor:
    """A mask that keeps the mean: 0 with probability `rate`, else 1 / (1 - rate).

    All masks come from F.dropout or bernoulli_, so whoever intercepts these has them all.
    """
    return F.dropout(like.new_ones(shape), rate)


def draw_kept(shape: tuple[int, ...], rate: float, like: Tensor) -> Tensor:
    """A 0/1 mask: 0 with probability `rate`."""
    return like.new_empty(shape).bernoulli_(1.0 - rate)


def by_step(mask: Tensor | None, sizes: list[int], gated: bool = False) -> Sequence[Tensor | None]:
    """The part of a mask that each step uses."""
    if mask is None:
        return [None] * len(sizes)
    if mask.dim() == 3 + gated:
        return mask[0].split(sizes)
    return [mask[:n] for n in sizes]


def over_rows(mask: Tensor, rows: Rows) -> Tensor:
    return mask[0] if mask.dim() == 3 else rows.spread(mask)


def draw_masks(
    p: Dropouts, rows: Rows, like: Tensor, size: int, gates: int, training: bool, recurrent_mask: Tensor | None
) -> tuple[Masks, bool]:
    """Draw the masks of one layer and direction; also whether the mask on h is per gate.

    Args:
        like: of the masks' dtype and device.
        size: width of the state.
        recurrent_mask: (batch, size), as given by the caller: multiplies the mask on h.
    """

    def draw(kind: Any, rate: float, step: bool, inner: tuple[int, ...] = ()) -> Tensor:
        """(batch, *inner, hidden) sorted, or (1, rows, *inner, hidden)."""
        if step:
            return kind((1, rows.count, *inner, size), rate, like)
        return rows.sort(kind((rows.batch, *inner, size), rate, like))

    def kept(rate: float, step: bool) -> Tensor:
        """The 0/1 mask, in evaluation its mean, (batch, 1)."""
        return draw(draw_kept, rate, step) if training else like.new_full((rows.batch, 1), 1.0 - rate)

    def combine(one: Tensor | None, other: Tensor) -> Tensor:
        """The product of two masks on h, of which either may be drawn per step, and the first per gate."""
        if one is None:
            return other
        stepwise = one.dim() == 3 + gated
        other = other.unsqueeze(-2) if gated else other
        if stepwise and other.dim() == 2 + gated:
            other = rows.spread(other)
        elif other.dim() == 3 + gated and not stepwise:
            one = rows.spread(one)
        return one * other

    on = training and p.variational > 0 and p.variational_per == "example"
    gated = on and p.per_gate and gates > 1
    inner = (gates,) if gated else ()
    hidden = None
    if on:
        hidden = draw(draw_inverted, p.variational, "variational" in p.per_step, inner)
    if p.recurrent and gates == 1:
        hidden = combine(hidden, kept(p.recurrent, "recurrent" in p.per_step))
    if recurrent_mask is not None:
        hidden = combine(hidden, rows.sort(recurrent_mask.to(like.dtype)))
    return Masks(
        hidden,
        kept(p.recurrent, "recurrent" in p.per_step) if p.recurrent and gates > 1 else None,
        kept(p.rnndrop, "rnndrop" in p.per_step) if p.rnndrop else None,
        kept(p.zoneout_cell, True) if p.zoneout_cell else None,
        kept(p.zoneout, True) if p.zoneout else None,
    ), gated


def drop_forward(
    x: Tensor, p: Dropouts, name: str, training: bool, time_dim: int = 1, rows: Rows | None = None
) -> Tensor:
    """Drop features of an example at all of its steps (Merity et al. 2018), or others at each (Zaremba et al. 2014).

    Args:
        x: (batch, time, width), or with time_dim=0 (time, batch, width); with `rows` (rows, width).
        name: of the rate, "input", "hidden" or "output".
    """
    rate = getattr(p, name)
    if not (rate and training):
        return x
    if name in p.per_step:
        return F.dropout(x, rate)
    if rows is not None:
        return x * rows.spread(rows.sort(draw_inverted((rows.batch, x.size(1)), rate, x)))
    return x * draw_inverted((x.size(1 - time_dim), x.size(2)), rate, x).unsqueeze(time_dim)


def drop_between(x: Tensor, p: Dropouts, training: bool, rows: Rows | None = None) -> Tensor:
    """Drop what one layer hands to the next: by `layers`, then by `hidden`; x as in `drop_forward`."""
    x = F.dropout(x, p.layers, training) if p.layers else x
    return drop_forward(x, p, "hidden", training, rows=rows)


def drop_parameter(value: Tensor, name: str, p: Dropouts, size: int, batch: int | None = None) -> Tensor:
    """A weight or bias as a training forward uses it: entries dropped, and columns by the masks that a batch shares.

    Args:
        value: (gates * size, width), or of a bias (gates * size,).
        name: torch's, of which the beginning says what it is.
        size: width of the state.
        batch: each of so many examples drops entries of its own. Default: one mask for all.

    Returns:
        As `value`, or with one more dimension, batch, before it where each example drops its own.
    """
    hidden, weight = "_hh_" in name, name.startswith("weight")
    if hidden and p.dropconnect and (weight or p.dropconnect_bias):
        value = F.dropout(value.expand(batch, *value.shape) if batch else value, p.dropconnect)
    rate = p.variational if hidden else p.variational_x
    if weight and rate and p.variational_per == "batch":
        # (m * h) U^T = h (U diag m)^T
        each = value.size(-2) // size if p.per_gate else 1
        mask = draw_inverted((each, 1, value.size(-1)), rate, value.detach())
        value = (value.unflatten(-2, (each, -1)) * mask).flatten(-3, -2)
    return value


def multiply_input(x: Tensor, w: Tensor, b: Tensor | None, p: Dropouts, rows: Rows, size: int, masked: bool) -> Tensor:
    """The input's part of the gates.

    Args:
        x: (rows, width).
        w: weight_ih, (gates * size, width).
        b: (gates * size,).
        size: width of the state.
        masked: drop by `variational_x`, where each example does so by itself.

    Returns:
        (rows, gates * size).
    """
    if not (masked and p.variational_x and p.variational_per == "example"):
        return F.linear(x, w, b)
    step, each = "variational" in p.per_step, w.size(0) // size if p.per_gate else 1
    mask = draw_inverted((rows.count if step else rows.batch, each, x.size(1)), p.variational_x, x)
    inputs = x.unsqueeze(1) * (mask if step else rows.spread(rows.sort(mask)))
    biases = b.chunk(each) if b is not None else [None] * each
    parts = zip(inputs.unbind(1), w.chunk(each), biases, strict=True)
    return torch.cat([F.linear(part, weight, bias) for part, weight, bias in parts], 1)
