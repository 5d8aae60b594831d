"""RNN, LSTM and GRU of torch with every recurrent dropout. One file on torch alone: it travels with a checkpoint.

The layers are torch's own classes: same weights, names, shapes and results. Without dropout they call torch's layer
(but for padded batches on a CPU); with it they run here, on the valid steps only, packed step by step with the longest
examples first, so that padding costs nothing and reaches nothing. GRU gates follow torch: z keeps the old state, r
acts after the product with h.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional as F
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence, pad_packed_sequence

PER_STEP = ("variational", "recurrent", "rnndrop")


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
        recurrent: on the update g of LSTM and GRU (Semeniuta et al. 2016). As published: unscaled, test: g * (1 - p).
        rnndrop: on the cell c_t, for a GRU on h_t (Moon et al. 2015). As published: unscaled, test: * (1 - p) at each
            step, so the memory fades at test; this reproduces its collapse on long sequences.
        zoneout: probability of keeping the old hidden state; new masks at each step; test: the expectation
            (Krueger et al. 2017: .05 with zoneout_cell .5 on characters and words).
        zoneout_cell: the same for the cell of an LSTM. As in the paper's equation, h reads the cell before zoneout.
        dropconnect: on the entries of weight_hh, kept / (1 - p); test: the mean weights (.5 in AWD-LSTM, Merity 2018).
        dropconnect_per: "batch", one mask for each forward as AWD-LSTM, or "example" as Wan et al. 2013 (whose masked
            bias and moment matching at test are not followed); that takes batch times the memory of weight_hh.
        input, hidden, output: locked dropout on the layer's input, between stacked layers and on the output, kept /
            (1 - p) (AWD-LSTM: .4, .25 and .4 on PTB).
        layers: between stacked layers, new at each step: the `dropout` of torch.nn.LSTM.
        per_step: which of "variational" (with variational_x), "recurrent", "rnndrop" draw new masks at each step.

    Raises:
        ValueError: a rate outside [0, 1), or an unknown name.
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
        if unknown := set(self.per_step) - set(PER_STEP):
            raise ValueError(f"dropout per_step={sorted(unknown)} is unknown; it may name {', '.join(PER_STEP)}")
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


class _Rows:
    """The valid (step, example) pairs in packed order: by step, in each step the longest examples first.

    Args:
        batch, time: the shape of the padded batch.
        lengths: (batch,) on the CPU; None when nothing is padded.
        device: where the rows live.
    """

    def __init__(self, batch: int, time: int, lengths: Tensor | None, device: torch.device) -> None:
        self.batch, self.time, self.padded = batch, time, lengths is not None
        self.sizes = [batch] * time
        if lengths is None:
            return
        ordered, order = lengths.sort(descending=True, stable=True)
        step, example = (torch.arange(int(ordered[0]))[:, None] < ordered).nonzero(as_tuple=True)
        sizes = step.bincount()
        start = F.pad(sizes.cumsum(0), (1, 0))
        self.sizes = sizes.tolist()
        self.order, self.inverse = order.to(device), order.argsort().to(device)
        self.flat = (step * batch + order[example]).to(device)
        self.example = example.to(device)
        self.mirror = (start[ordered[example] - 1 - step] + example).to(device)
        self.previous = (start[step - 1] + example)[self.sizes[0] if self.sizes else 0 :].to(device)
        # Into (initial state, rows): the row of each example's last step, or its initial state if it has none.
        last = batch + start[(ordered - 1).clamp(min=0)] + torch.arange(batch)
        self.last = torch.where(ordered > 0, last, torch.arange(batch))[order.argsort()].to(device)

    @property
    def count(self) -> int:
        return sum(self.sizes)

    def pack(self, x: Tensor) -> Tensor:
        """(time, batch, d) -> (rows, d)."""
        x = x.reshape(self.time * self.batch, -1)
        return x.index_select(0, self.flat) if self.padded else x

    def unpack(self, rows: Tensor) -> Tensor:
        """(rows, d) -> (time, batch, d), zero at padded steps."""
        if self.padded:
            rows = rows.new_zeros(self.time * self.batch, rows.size(1)).index_copy(0, self.flat, rows)
        return rows.view(self.time, self.batch, -1)

    def sort(self, state: Tensor) -> Tensor:
        """(batch, ...) in the order of a step."""
        return state.index_select(0, self.order) if self.padded else state

    def spread(self, mask: Tensor) -> Tensor:
        """(batch, ...), sorted -> (rows, ...): each example's at all its steps."""
        if self.padded:
            return mask.index_select(0, self.example)
        return mask.expand(self.time, *mask.shape).reshape(-1, *mask.shape[1:])

    def reverse(self, rows: Tensor) -> Tensor:
        """(rows, d) with the valid steps of each example in reverse order; its own inverse."""
        if self.padded:
            return rows.index_select(0, self.mirror)
        return rows.view(self.time, self.batch, -1).flip(0).view(rows.shape)

    def before(self, first: Tensor, rows: Tensor) -> Tensor:
        """(rows, d): what the state was before each row; `first` is the initial state, sorted."""
        first = first[: self.sizes[0] if self.sizes else 0]
        return torch.cat([first, rows.index_select(0, self.previous) if self.padded else rows[: -self.batch]])

    def final(self, first: Tensor, rows: Tensor) -> Tensor:
        """(batch, d): the state after each example's last valid step, in the caller's order."""
        return torch.cat([first, rows]).index_select(0, self.last) if self.padded else rows[-self.batch :]


class _Masks(NamedTuple):
    """The masks of one layer and direction: (batch, hidden or 1) sorted, or (1, rows, hidden) when drawn per step."""

    hidden: Tensor | None = None  # on h into the gates; per gate (batch, gates, hidden) or (1, rows, gates, hidden)
    update: Tensor | None = None  # on g
    cell: Tensor | None = None  # on c, of a GRU on h
    new_cell: Tensor | None = None  # where c is replaced (zoneout)
    new_hidden: Tensor | None = None  # where h is


def _inverted(shape: tuple[int, ...], rate: float, like: Tensor) -> Tensor:
    """A mask that keeps the mean: 0 with probability `rate`, else 1 / (1 - rate).

    All masks come from F.dropout or bernoulli_, so whoever intercepts these has them all.
    """
    return F.dropout(like.new_ones(shape), rate)


def _kept(shape: tuple[int, ...], rate: float, like: Tensor) -> Tensor:
    """A 0/1 mask: 0 with probability `rate`."""
    return like.new_empty(shape).bernoulli_(1.0 - rate)


def _by_step(mask: Tensor | None, sizes: list[int], gated: bool = False) -> Sequence[Tensor | None]:
    """The part of a mask that each step uses."""
    if mask is None:
        return [None] * len(sizes)
    if mask.dim() == 3 + gated:
        return mask[0].split(sizes)
    return [mask[:n] for n in sizes]


def _over_rows(mask: Tensor, rows: _Rows) -> Tensor:
    return mask[0] if mask.dim() == 3 else rows.spread(mask)


class _Recurrence(torch.autograd.Function):
    """One direction of one layer over all steps: a GEMM and a few in-place operations for each step.

    Gradients flow to x, the weights, the initial states and the mask on h; the other masks are constants.
    """

    @staticmethod
    def forward(
        ctx: Any,
        mode: str,
        rows: _Rows,
        x: Tensor,  # (rows, gates * hidden): the input's part of the gates, biases included except GRU's b_hh
        w: Tensor,  # (gates * hidden, hidden)
        b: Tensor | None,  # (gates * hidden,): GRU's b_hh
        h0: Tensor,  # (batch, hidden)
        c0: Tensor | None,
        *masks: Tensor | None,
    ) -> tuple[Tensor, Tensor | None]:
        sizes, size, gates = rows.sizes, w.size(1), w.size(0) // w.size(1)
        m = _Masks(*masks)
        act = torch.empty_like(x)
        hs, inner = (x.new_empty(x.size(0), size) for _ in range(2))  # what a step gives out; what its product gets
        # LSTM: the cell and its tanh. GRU: the candidate's part of h.
        cs = x.new_empty(x.size(0), size) if mode == "LSTM" else None
        extra = x.new_empty(x.size(0), size) if mode in ("LSTM", "GRU") else None
        parts = [part.split(sizes) for part in act.view(-1, gates, size).unbind(1)]
        x_t, act_t, h_t, in_t = x.split(sizes), act.split(sizes), hs.split(sizes), inner.split(sizes)
        c_t = cs.split(sizes) if cs is not None else ()
        extra_t = extra.split(sizes) if extra is not None else ()
        masks_t = [_by_step(mask, sizes) for mask in m]
        wt = w.t()
        product = x.new_empty(rows.batch, w.size(0)) if mode == "GRU" else None
        for t, n in enumerate(sizes):
            before = h0[:n] if t == 0 else h_t[t - 1][:n]
            m_h, m_g, m_c, new_c, new_h = (mask[t] for mask in masks_t)
            if m_h is None:
                in_t[t].copy_(before)
            else:
                torch.mul(before, m_h, out=in_t[t])
            h, a = h_t[t], act_t[t]
            if mode == "LSTM":
                assert c0 is not None
                c_before = c0[:n] if t == 0 else c_t[t - 1][:n]
                torch.addmm(x_t[t], in_t[t], wt, out=a)
                i, f, g, o = (part[t] for part in parts)
                a[:, : 2 * size].sigmoid_()
                g.tanh_()
                o.sigmoid_()
                c = c_t[t]
                torch.mul(i, g, out=c)
                if m_g is not None:
                    c.mul_(m_g)
                c.addcmul_(f, c_before)
                if m_c is not None:
                    c.mul_(m_c)
                torch.tanh(c, out=extra_t[t])
                torch.mul(o, extra_t[t], out=h)
                if new_c is not None:
                    torch.lerp(c_before, c, new_c, out=c)
            elif mode == "GRU":
                assert product is not None
                u = product[:n]
                if b is None:
                    torch.mm(in_t[t], wt, out=u)
                else:
                    torch.addmm(b, in_t[t], wt, out=u)
                r, z, g = (part[t] for part in parts)
                extra_t[t].copy_(u[:, 2 * size :])
                torch.add(x_t[t][:, : 2 * size], u[:, : 2 * size], out=a[:, : 2 * size])
                a[:, : 2 * size].sigmoid_()
                torch.addcmul(x_t[t][:, 2 * size :], r, extra_t[t], out=g).tanh_()
                if m_g is None:
                    torch.lerp(g, before, z, out=h)
                else:
                    torch.mul(g, m_g, out=h).lerp_(before, z)
                if m_c is not None:
                    h.mul_(m_c)
            else:
                torch.addmm(x_t[t], in_t[t], wt, out=a)
                h.copy_(a.tanh_() if mode == "RNN_TANH" else a.relu_())
            if new_h is not None:
                torch.lerp(before, h, new_h, out=h)
        ctx.mode, ctx.rows = mode, rows
        ctx.save_for_backward(w, h0, c0, act, hs, inner, cs, extra, *masks)
        ctx.set_materialize_grads(False)
        return hs, cs

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, d_hs: Tensor | None, d_cs: Tensor | None = None) -> tuple[Tensor | None, ...]:
        w, h0, c0, act, hs, inner, cs, extra, *masks = ctx.saved_tensors
        m, rows, mode = _Masks(*masks), ctx.rows, ctx.mode
        with torch.autocast(w.device.type, enabled=False):
            return _Recurrence._gradients(ctx, mode, rows, m, w, h0, c0, act, hs, inner, cs, extra, d_hs, d_cs)

    @staticmethod
    def _gradients(
        ctx: Any,
        mode: str,
        rows: _Rows,
        m: _Masks,
        w: Tensor,
        h0: Tensor,
        c0: Tensor | None,
        act: Tensor,
        hs: Tensor,
        inner: Tensor,
        cs: Tensor | None,
        extra: Tensor | None,
        d_hs: Tensor | None,
        d_cs: Tensor | None,
    ) -> tuple[Tensor | None, ...]:
        needs = ctx.needs_input_grad[2:]
        sizes, size = rows.sizes, w.size(1)
        lstm, gru = mode == "LSTM", mode == "GRU"
        # At once, for all steps: slopes (rows, n, hidden), by which the state's gradient becomes that of the gates.
        h_before = None
        if gru or needs[5]:
            h_before = inner if m.hidden is None else rows.before(h0, hs)
        parts = act.view(-1, act.size(1) // size, size).unbind(1)
        slopes = act.new_empty(act.size(0), 4 if lstm or gru else 1, size)
        slope = slopes.unbind(1)
        if lstm:
            assert c0 is not None
            assert cs is not None
            assert extra is not None
            i, f, g, o = parts
            torch.mul(torch.addcmul(i, i, i, value=-1), g, out=slope[0])
            torch.mul(torch.addcmul(f, f, f, value=-1), rows.before(c0, cs), out=slope[1])
            torch.addcmul(i, i * g, g, value=-1, out=slope[2])
            torch.mul(torch.addcmul(o, o, o, value=-1), extra, out=slope[3])
            to_cell = torch.addcmul(o, o * extra, extra, value=-1)
            kept = f
            if m.update is not None:
                slopes[:, 0:3:2] *= _over_rows(m.update, rows).unsqueeze(1)
            if m.cell is not None:
                cell = _over_rows(m.cell, rows)
                slopes[:, :3] *= cell.unsqueeze(1)
                kept = f * cell
            if m.new_hidden is not None:
                new = _over_rows(m.new_hidden, rows)
                slope[3].mul_(new)
                to_cell *= new
            d_gates = slopes.view(-1, 4 * size)
            to_cell_t, kept_t = to_cell.split(sizes), kept.split(sizes)
            output_t, rest_t = slope[3].split(sizes), slopes[:, :3].split(sizes)
        elif gru:
            assert h_before is not None
            assert extra is not None
            r, z, g = parts
            update = g if m.update is None else g * _over_rows(m.update, rows)
            # Four slopes in the order (inner, r, z, outer) of g's two halves, so that the first three are those of the
            # product with h and the last three those of x.
            torch.mul(torch.addcmul(z, z, z, value=-1), h_before - update, out=slope[2])
            torch.mul(1 - z, torch.addcmul(g.new_ones(()), g, g, value=-1), out=slope[3])
            kept = z
            if m.update is not None:
                slope[3].mul_(_over_rows(m.update, rows))
            if m.cell is not None:
                cell = _over_rows(m.cell, rows)
                slopes[:, 2:] *= cell.unsqueeze(1)
                kept = z * cell
            if m.new_hidden is not None:
                new = _over_rows(m.new_hidden, rows)
                slopes[:, 2:] *= new.unsqueeze(1)
                kept = torch.lerp(new.new_ones(()), kept, new)
            torch.mul(slope[3], r, out=slope[0])
            torch.mul(slope[0] * extra, 1 - r, out=slope[1])
            d_gates, kept_t = slopes.view(-1, 4 * size)[:, : 3 * size], kept.split(sizes)
            w = w.roll(size, 0)
        else:
            a = parts[0]
            if mode == "RNN_TANH":
                torch.addcmul(a.new_ones(()), a, a, value=-1, out=slope[0])
            else:
                slope[0].copy_(a > 0)
            if m.new_hidden is not None:
                slope[0].mul_(_over_rows(m.new_hidden, rows))
            d_gates = slopes.view(-1, size)
        # The recursion, backwards.
        dh = torch.zeros_like(h0, memory_format=torch.contiguous_format)
        dc = torch.zeros_like(dh) if lstm else None
        d_mask = torch.zeros_like(m.hidden) if needs[5] and m.hidden is not None else None
        d_mask_t = _by_step(d_mask, sizes)
        h_before_t = h_before.split(sizes) if h_before is not None else ()
        gates_t, slopes_t = d_gates.split(sizes), slopes.split(sizes)
        d_hs_t = d_hs.split(sizes) if d_hs is not None else None
        d_cs_t = d_cs.split(sizes) if d_cs is not None else None
        m_h, new_c, new_h = (_by_step(mask, sizes) for mask in (m.hidden, m.new_cell, m.new_hidden))
        for t in range(len(sizes) - 1, -1, -1):
            n = sizes[t]
            d = dh[:n]
            if d_hs_t is not None:
                d += d_hs_t[t]
            carry = None
            if lstm:
                assert dc is not None
                e = dc[:n]
                if d_cs_t is not None:
                    e += d_cs_t[t]
                held = None
                if (new_t := new_c[t]) is not None:
                    held = torch.addcmul(e, e, new_t, value=-1)
                    e.mul_(new_t)
                e.addcmul_(d, to_cell_t[t])
                rest_t[t].mul_(e.unsqueeze(1))
                output_t[t].mul_(d)
                e.mul_(kept_t[t])
                if held is not None:
                    e += held
            else:
                slopes_t[t].mul_(d.unsqueeze(1))
            if gru:
                carry = d * kept_t[t]
            elif (new_t := new_h[t]) is not None:
                carry = torch.addcmul(d, d, new_t, value=-1)
            torch.mm(gates_t[t], w, out=d)
            if (mask := m_h[t]) is not None:
                if (d_m := d_mask_t[t]) is not None:
                    d_m.addcmul_(d, h_before_t[t])
                d.mul_(mask)
            if carry is not None:
                d += carry
        d_w = d_gates.t() @ inner if needs[1] else None
        d_b = d_gates.sum(0) if needs[2] else None
        d_x = d_gates
        if gru:
            d_x = slopes.view(-1, 4 * size)[:, size:]
            d_w, d_b = (None if d is None else d.roll(-size, 0) for d in (d_w, d_b))
        return None, None, d_x, d_w, d_b, dh, dc, d_mask, None, None, None, None


def _loop(
    mode: str,
    rows: _Rows,
    x: Tensor,
    w: Tensor,
    b: Tensor | None,
    h0: Tensor,
    c0: Tensor | None,
    masks: _Masks,
    gated: bool,
) -> tuple[Tensor, Tensor | None]:
    """The same as `_Recurrence` in plain autograd: for second derivatives, masks per gate and weights per example.

    Args:
        w: (gates * hidden, hidden), or (batch, gates * hidden, hidden).
        gated: the mask on h has one more dimension, of gates, before its last.
    """
    sizes, size, gates = rows.sizes, w.size(-1), w.size(-2) // w.size(-1)
    masks_t = [_by_step(mask, sizes, gated and place == 0) for place, mask in enumerate(masks)]
    h, c = h0, c0
    hs, cs = [], []
    for t, (n, x_t) in enumerate(zip(sizes, x.split(sizes), strict=True)):
        m_h, m_g, m_c, new_c, new_h = (mask[t] for mask in masks_t)
        before = h[:n]
        inner = before.unsqueeze(1).expand(n, gates, size)
        if m_h is not None:
            inner = inner * (m_h if gated else m_h.unsqueeze(1))
        each = w.unflatten(-2, (gates, size))
        if w.dim() == 2:
            product = torch.einsum("bgi,gji->bgj", inner, each)
        else:
            product = torch.einsum("bgi,bgji->bgj", inner, each[:n])
        if b is not None:
            product = product + b.view(gates, size)
        u, a = product.unbind(1), x_t.view(n, gates, size).unbind(1)
        if mode == "LSTM":
            assert c is not None
            i, f, o = (torch.sigmoid(a[k] + u[k]) for k in (0, 1, 3))
            g = torch.tanh(a[2] + u[2])
            c_new = f * c[:n] + i * (g if m_g is None else m_g * g)
            if m_c is not None:
                c_new = m_c * c_new
            new = o * torch.tanh(c_new)
            if new_c is not None:
                c_new = torch.lerp(c[:n], c_new, new_c)
            cs.append(c_new)
            c = torch.cat([c_new, c[n:]])
        elif mode == "GRU":
            r, z = (torch.sigmoid(a[k] + u[k]) for k in (0, 1))
            g = torch.tanh(a[2] + r * u[2])
            new = torch.lerp(g if m_g is None else m_g * g, before, z)
            if m_c is not None:
                new = m_c * new
        else:
            new = torch.tanh(a[0] + u[0]) if mode == "RNN_TANH" else torch.relu(a[0] + u[0])
        if new_h is not None:
            new = torch.lerp(before, new, new_h)
        hs.append(new)
        h = torch.cat([new, h[n:]])
    return torch.cat([h0[:0], *hs]), None if c0 is None else torch.cat([c0[:0], *cs])


class _Torch(nn.Module):
    """A handle on torch's own forward, for `functional_call` with other weights."""

    def __init__(self, layer: _Recurrent) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, *args: Any) -> Any:
        return self.layer.torch_forward(*args)


class _Recurrent(nn.RNNBase):
    """A layer of torch with recurrent dropout; mixed into torch's class of the cell.

    Args:
        input_size, hidden_size: widths of input and state.
        num_layers: stacked layers.
        dropout: a `Dropouts`, a mapping of its fields, or one rate between layers as in torch. Default 0: none.
        bias, bidirectional: as in torch.
        batch_first: (batch, time, width) tensors; True, unlike torch's default.
        double_backward: take the plain autograd loop, which has second derivatives; without it they raise.
        device, dtype: of the weights.
        torch_options: `nonlinearity` of an RNN, "tanh" (default) or "relu".

    Raises:
        ValueError: a rate outside [0, 1), a dropout that the cell does not define, or `proj_size`.
    """

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        num_layers: int = 1,
        *,
        dropout: Dropouts | Mapping[str, Any] | float = 0.0,
        bias: bool = True,
        batch_first: bool = True,
        bidirectional: bool = False,
        double_backward: bool = False,
        device: Any = None,
        dtype: Any = None,
        **torch_options: Any,
    ) -> None:
        if torch_options.get("proj_size"):
            raise ValueError(f"proj_size={torch_options['proj_size']} is not supported; leave it out")
        super().__init__(
            input_size,  # type: ignore[arg-type]  # the next class is that of the cell, which names its mode itself
            hidden_size,
            num_layers,
            bias=bias,
            batch_first=batch_first,
            bidirectional=bidirectional,
            device=device,
            dtype=dtype,
            **torch_options,
        )
        self.dropouts = Dropouts.of(dropout)
        self.double_backward = double_backward
        wrong = ["zoneout_cell"] if self.mode == "GRU" else ["zoneout_cell", "recurrent", "rnndrop"]
        if self.mode != "LSTM" and (found := [name for name in wrong if getattr(self.dropouts, name)]):
            raise ValueError(f"dropout {', '.join(found)} is not defined for {self.mode}")

    def extra_repr(self) -> str:
        return ", ".join([super().extra_repr(), *(f"{key}={value}" for key, value in self.dropouts.set().items())])

    def forward(
        self,
        input: Tensor,
        hx: Tensor | tuple[Tensor, Tensor] | None = None,
        lengths: Tensor | Sequence[int] | None = None,
        recurrent_mask: Tensor | None = None,
    ) -> tuple[Tensor, Any]:
        """Run the layers.

        Under autocast the inputs' products and the results take the low precision, the recursion that of the weights.
        torch.compile breaks its graph at the recursion (loops over time take half a minute to compile for nothing).

        Args:
            input: (batch, time, input_size), or (time, batch, input_size) without batch_first.
            hx: the initial state (layers * directions, batch, hidden); of an LSTM a pair, h and c. Default: zeros.
            lengths: (batch,) valid steps of each example, 0..time; the rest is padding, of which nothing is read.
            recurrent_mask: multiplies h_{t-1} where it enters the gates, at all steps; differentiable. (batch, hidden)
                acts in the last layer (in each direction), (layers * directions, batch, hidden) everywhere.

        Returns:
            The last layer's output (batch, time, directions * hidden), zero at padding, and the state after each
            example's last valid step, shaped like hx.

        Raises:
            ValueError: wrong shapes, or lengths outside 0..time.
            TypeError: a PackedSequence, or hx of the wrong kind.
        """
        if isinstance(input, PackedSequence):
            raise TypeError("input is a PackedSequence; pass the padded tensor and lengths=")
        if input.dim() != 3 or input.size(2) != self.input_size or input.size(1) * input.size(0) == 0:
            wanted = f"({'batch, time' if self.batch_first else 'time, batch'}, {self.input_size})"
            raise ValueError(f"input has shape {tuple(input.shape)}, expected {wanted}, not empty")
        time, batch = (input.size(1), input.size(0)) if self.batch_first else (input.size(0), input.size(1))
        if lengths is not None:
            lengths = torch.as_tensor(lengths, dtype=torch.long).cpu()
            if lengths.shape != (batch,):
                raise ValueError(f"lengths has shape {tuple(lengths.shape)}, expected ({batch},)")
            if int(lengths.min()) < 0 or int(lengths.max()) > time:
                raise ValueError(f"lengths go from {int(lengths.min())} to {int(lengths.max())}, expected 0..{time}")
            if int(lengths.min()) == time:
                lengths = None
        states = (hx,) if isinstance(hx, Tensor) else hx
        count = 2 if self.mode == "LSTM" else 1
        expected = (self._directions * self.num_layers, batch, self.hidden_size)
        if states is not None and (isinstance(hx, Tensor) != (count == 1) or len(states) != count):
            raise TypeError(f"hx of {self.mode} is {'a pair (h, c)' if count == 2 else 'a tensor'}")
        for state in states or ():
            if tuple(state.shape) != expected:
                raise ValueError(f"hx has shape {tuple(state.shape)}, expected {expected}")
        if recurrent_mask is not None and tuple(recurrent_mask.shape) not in (expected, expected[1:]):
            got = tuple(recurrent_mask.shape)
            raise ValueError(f"recurrent_mask has shape {got}, expected {expected[1:]} or {expected}")
        return self._run(input, hx, lengths, recurrent_mask)

    @property
    def _directions(self) -> int:
        return 2 if self.bidirectional else 1

    def _run(
        self, input: Tensor, hx: Any, lengths: Tensor | None, recurrent_mask: Tensor | None
    ) -> tuple[Tensor, Any]:
        p, time_dim = self.dropouts, 1 if self.batch_first else 0
        input = _locked(input, p.input if self.training else 0.0, time_dim)
        own = recurrent_mask is not None or self._needs_own() or (lengths is not None and int(lengths.min()) == 0)
        # On a CPU torch takes three times as long for packed batches.
        own = own or (lengths is not None and not input.is_cuda)
        # cuDNN has no backward in evaluation, and no second derivatives.
        own = own or self.double_backward or (input.is_cuda and not self.training and torch.is_grad_enabled())
        if own:
            output, state = self._own(input, hx, lengths, recurrent_mask)
        else:
            output, state = self._torch(input, hx, lengths)
        return _locked(output, p.output if self.training else 0.0, time_dim), state

    def _needs_own(self) -> bool:
        """Whether a dropout is on that torch's layer cannot do, or a weight is made of others.

        Torch's layer keeps a list of its weights, and so misses what weight normalisation or pruning makes of them.
        """
        p = self.dropouts
        if any(name not in self._parameters for name in self._flat_weights_names):
            return True
        if p.recurrent or p.rnndrop or p.zoneout or p.zoneout_cell:
            return True
        stacked = self.num_layers > 1 and (p.hidden or p.layers)
        masked = p.variational_per == "example" and (p.variational or p.variational_x)
        connected = p.dropconnect_per == "example" and p.dropconnect
        return self.training and bool(masked or connected or stacked)

    def _torch(self, input: Tensor, hx: Any, lengths: Tensor | None) -> tuple[Tensor, Any]:
        time = input.size(1 if self.batch_first else 0)
        packed: Any = input
        if lengths is not None:
            packed = pack_padded_sequence(input, lengths, self.batch_first, enforce_sorted=False)
        p = self.dropouts
        if self.training and (p.dropconnect or p.variational or p.variational_x):
            names = [name for name, _ in self.named_parameters(recurse=False) if name.startswith("weight")]
            weights = {f"layer.{name}": self._dropped(name) for name in names}
            output, state = torch.func.functional_call(_Torch(self), weights, (packed, hx))
            for name in names:  # torch's layer keeps a list of its weights: put the parameters back
                setattr(self, name, getattr(self, name))
        else:
            output, state = self.torch_forward(packed, hx)
        if lengths is not None:
            output, _ = pad_packed_sequence(output, self.batch_first, total_length=time)
        return output, state

    def torch_forward(self, *args: Any) -> Any:
        """The forward of torch's class, without any dropout."""
        return super().forward(*args)

    def _dropped(self, name: str, batch: int | None = None) -> Tensor:
        """A weight as a training forward uses it: entries dropped, and columns by the masks that a batch shares.

        (gates * hidden, width), or (batch, gates * hidden, width) when each example drops entries of its own.
        """
        p, w, hidden = self.dropouts, getattr(self, name), name.startswith("weight_hh")
        if hidden and p.dropconnect:
            w = F.dropout(w.expand(batch, *w.shape) if batch else w, p.dropconnect)
        rate = p.variational if hidden else p.variational_x
        if rate and p.variational_per == "batch":
            # (m * h) U^T = h (U diag m)^T
            each = w.size(-2) // self.hidden_size if p.per_gate else 1
            mask = _inverted((each, 1, w.size(-1)), rate, w.detach())
            w = (w.unflatten(-2, (each, -1)) * mask).flatten(-3, -2)
        return w

    @torch.compiler.disable
    def _own(
        self, input: Tensor, hx: Any, lengths: Tensor | None, recurrent_mask: Tensor | None
    ) -> tuple[Tensor, Any]:
        """All layers on the packed rows."""
        p, directions = self.dropouts, self._directions
        x = input.transpose(0, 1) if self.batch_first else input
        rows = _Rows(x.size(1), x.size(0), lengths, x.device)
        x = rows.pack(x)
        states = (hx,) if isinstance(hx, Tensor) else hx
        h_last, c_last = [], []
        for layer in range(self.num_layers):
            if layer and self.training:
                x = F.dropout(x, p.layers)
                if p.hidden:
                    x = x * rows.spread(rows.sort(_inverted((rows.batch, x.size(1)), p.hidden, x)))
            outputs = []
            for direction in range(directions):
                place = layer * directions + direction
                mask = None
                if recurrent_mask is not None and (recurrent_mask.dim() == 3 or layer == self.num_layers - 1):
                    mask = recurrent_mask[place] if recurrent_mask.dim() == 3 else recurrent_mask
                h0, c0 = ([state[place] for state in states] + [None])[:2] if states is not None else (None, None)
                hs, h, c = self._direction(rows, x, layer, direction == 1, h0, c0, mask)
                outputs.append(hs)
                h_last.append(h)
                c_last.append(c)
            x = torch.cat(outputs, 1) if directions == 2 else outputs[0]
        output = rows.unpack(x)
        output = output.transpose(0, 1) if self.batch_first else output
        state: Any = torch.stack(h_last)
        return output, (state, torch.stack(c_last)) if self.mode == "LSTM" else state  # type: ignore[arg-type]

    def _direction(
        self,
        rows: _Rows,
        x: Tensor,
        layer: int,
        backwards: bool,
        h0: Tensor | None,
        c0: Tensor | None,
        recurrent_mask: Tensor | None,
    ) -> tuple[Tensor, Tensor, Tensor | None]:
        """One layer in one direction: its output (rows, hidden), and its last h and c (batch, hidden)."""
        p, suffix = self.dropouts, f"_l{layer}{'_reverse' if backwards else ''}"
        names = f"weight_ih{suffix}", f"weight_hh{suffix}"
        w_ih, w = self._dropped(names[0]) if self.training else getattr(self, names[0]), getattr(self, names[1])
        b_ih, b = (getattr(self, f"bias_{kind}{suffix}") if self.bias else None for kind in ("ih", "hh"))
        gates = w.size(0) // self.hidden_size
        if b_ih is not None and b is not None and self.mode != "GRU":
            b_ih, b = b_ih + b, None
        if self.training and p.variational_x and p.variational_per == "example":
            step = "variational" in p.per_step
            each = gates if p.per_gate else 1
            mask = _inverted((rows.count if step else rows.batch, each, x.size(1)), p.variational_x, x)
            masked = x.unsqueeze(1) * (mask if step else rows.spread(rows.sort(mask)))
            biases = b_ih.chunk(each) if b_ih is not None else [None] * each
            parts = zip(masked.unbind(1), w_ih.chunk(each), biases, strict=True)
            x = torch.cat([F.linear(part, weight, bias) for part, weight, bias in parts], 1)
        else:
            x = F.linear(x, w_ih, b_ih)
        if backwards:
            x = rows.reverse(x)
        with torch.autocast(x.device.type, enabled=False):
            low, x = x.dtype, x.to(w.dtype)
            if self.training:
                w = self._dropped(names[1], rows.batch if p.dropconnect_per == "example" else None)
            zeros = x.new_zeros(rows.batch, self.hidden_size)
            h0 = zeros if h0 is None else rows.sort(h0.to(x.dtype))
            c0 = (zeros if c0 is None else rows.sort(c0.to(x.dtype))) if self.mode == "LSTM" else None
            masks, gated = self._masks(rows, x, gates, recurrent_mask)
            if self.double_backward or gated or w.dim() == 3:
                hs, cs = _loop(self.mode, rows, x, w, b, h0, c0, masks, gated)
            else:
                hs, cs = _Recurrence.apply(self.mode, rows, x, w, b, h0, c0, *masks)
            h, c = rows.final(h0, hs), None if c0 is None or cs is None else rows.final(c0, cs)
        return (rows.reverse(hs) if backwards else hs).to(low), h.to(low), None if c is None else c.to(low)

    def _masks(self, rows: _Rows, like: Tensor, gates: int, recurrent_mask: Tensor | None) -> tuple[_Masks, bool]:
        """Draw the masks of one layer and direction; also whether the mask on h is per gate."""
        p, size = self.dropouts, self.hidden_size

        def draw(kind: Any, rate: float, step: bool, inner: tuple[int, ...] = ()) -> Tensor:
            """(batch, *inner, hidden) sorted, or (1, rows, *inner, hidden)."""
            if step:
                return kind((1, rows.count, *inner, size), rate, like)
            return rows.sort(kind((rows.batch, *inner, size), rate, like))

        def kept(rate: float, step: bool) -> Tensor:
            """The 0/1 mask, in evaluation its mean, (batch, 1)."""
            return draw(_kept, rate, step) if self.training else like.new_full((rows.batch, 1), 1.0 - rate)

        on = self.training and p.variational > 0 and p.variational_per == "example"
        gated = on and p.per_gate and gates > 1
        inner = (gates,) if gated else ()
        hidden = None
        if on:
            hidden = draw(_inverted, p.variational, "variational" in p.per_step, inner)
        if recurrent_mask is not None:
            given = rows.sort(recurrent_mask.to(like.dtype))
            if hidden is None:
                hidden = given
            else:
                given = given.unsqueeze(1) if gated else given
                hidden = hidden * (rows.spread(given) if hidden.dim() == 3 + gated else given)
        return _Masks(
            hidden,
            kept(p.recurrent, "recurrent" in p.per_step) if p.recurrent else None,
            kept(p.rnndrop, "rnndrop" in p.per_step) if p.rnndrop else None,
            kept(p.zoneout_cell, True) if p.zoneout_cell else None,
            kept(p.zoneout, True) if p.zoneout else None,
        ), gated


def _locked(x: Tensor, rate: float, time_dim: int) -> Tensor:
    """Drop features of an example at all of its steps (Merity et al. 2018)."""
    if not rate:
        return x
    return x * _inverted((x.size(1 - time_dim), x.size(2)), rate, x).unsqueeze(time_dim)


class RNN(_Recurrent, nn.RNN):  # type: ignore[misc]
    """`torch.nn.RNN` with dropout: h_t = tanh(W x_t + b + U (m_h * h_{t-1})); see `Dropouts` for what it defines."""


class LSTM(_Recurrent, nn.LSTM):  # type: ignore[misc]
    """`torch.nn.LSTM` with dropout: c_t = m_c * (f * c_{t-1} + i * m_g * g), h_t = o * tanh(c_t), then zoneout.

    The gates i, f, g, o see m_h * h_{t-1}; see `Dropouts` for the masks.
    """


class GRU(_Recurrent, nn.GRU):  # type: ignore[misc]
    """`torch.nn.GRU` with dropout: h_t = m_c * ((1 - z) * m_g * g + z * h_{t-1}), then zoneout.

    The gates see m_h * h_{t-1}, with g = tanh(W x + b + r * (U (m_h * h_{t-1}) + b')); see `Dropouts` for the masks.
    """
