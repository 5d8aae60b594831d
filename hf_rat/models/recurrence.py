"""The recursion of RNN, LSTM and GRU over packed rows, forwards and backwards. It travels with a checkpoint."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from .padding import Rows
from .recurrent_dropouts import Masks, by_step, over_rows


class Recurrence(torch.autograd.Function):
    """One direction of one layer over all steps: a GEMM and a few in-place operations for each step.

    Gradients flow to x, the weights, the initial states and the mask on h; the other masks are constants. The gates
    take the memory of x, whose values no one else may need: fresh memory costs time where batches are large.
    """

    @staticmethod
    def forward(
        ctx: Any,
        mode: str,
        rows: Rows,
        x: Tensor,  # (rows, gates * hidden): the input's part of the gates, biases included except GRU's b_hh; used up
        w: Tensor,  # (gates * hidden, hidden)
        b: Tensor | None,  # (gates * hidden,): GRU's b_hh
        h0: Tensor,  # (batch, hidden)
        c0: Tensor | None,
        *masks: Tensor | None,
    ) -> tuple[Tensor, Tensor | None]:
        sizes, size, gates = rows.sizes, w.size(1), w.size(0) // w.size(1)
        m = Masks(*masks)
        act = x.detach()
        hs, inner = (x.new_empty(x.size(0), size) for _ in range(2))  # what a step gives out; what its product gets
        # LSTM: the cell and its tanh. GRU: the candidate's part of h.
        cs = x.new_empty(x.size(0), size) if mode == "LSTM" else None
        extra = x.new_empty(x.size(0), size) if mode in ("LSTM", "GRU") else None
        parts = [part.split(sizes) for part in act.view(-1, gates, size).unbind(1)]
        act_t, h_t, in_t = act.split(sizes), hs.split(sizes), inner.split(sizes)
        c_t = cs.split(sizes) if cs is not None else ()
        extra_t = extra.split(sizes) if extra is not None else ()
        masks_t = [by_step(mask, sizes) for mask in m]
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
                a.addmm_(in_t[t], wt)
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
                a[:, : 2 * size].add_(u[:, : 2 * size]).sigmoid_()
                g.addcmul_(r, extra_t[t]).tanh_()
                if m_g is None:
                    torch.lerp(g, before, z, out=h)
                else:
                    torch.mul(g, m_g, out=h).lerp_(before, z)
                if m_c is not None:
                    h.mul_(m_c)
            else:
                a.addmm_(in_t[t], wt)
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
        saved = ctx.saved_tensors  # once: under activation checkpointing they can be had only once
        with torch.autocast(saved[0].device.type, enabled=False):
            return Recurrence._gradients(ctx, saved, d_hs, d_cs)

    @staticmethod
    def _gradients(
        ctx: Any, saved: tuple[Any, ...], d_hs: Tensor | None, d_cs: Tensor | None
    ) -> tuple[Tensor | None, ...]:
        w, h0, c0, act, hs, inner, cs, extra, *masks = saved
        m, rows, mode = Masks(*masks), ctx.rows, ctx.mode
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
                slopes[:, 0:3:2] *= over_rows(m.update, rows).unsqueeze(1)
            if m.cell is not None:
                cell = over_rows(m.cell, rows)
                slopes[:, :3] *= cell.unsqueeze(1)
                kept = f * cell
            if m.new_hidden is not None:
                new = over_rows(m.new_hidden, rows)
                slope[3].mul_(new)
                to_cell *= new
            d_gates = slopes.view(-1, 4 * size)
            to_cell_t, kept_t = to_cell.split(sizes), kept.split(sizes)
            output_t, rest_t = slope[3].split(sizes), slopes[:, :3].split(sizes)
        elif gru:
            assert h_before is not None
            assert extra is not None
            r, z, g = parts
            update = g if m.update is None else g * over_rows(m.update, rows)
            # Four slopes in the order (inner, r, z, outer) of g's two halves, so that the first three are those of the
            # product with h and the last three those of x.
            torch.mul(torch.addcmul(z, z, z, value=-1), h_before - update, out=slope[2])
            torch.mul(1 - z, torch.addcmul(g.new_ones(()), g, g, value=-1), out=slope[3])
            kept = z
            if m.update is not None:
                slope[3].mul_(over_rows(m.update, rows))
            if m.cell is not None:
                cell = over_rows(m.cell, rows)
                slopes[:, 2:] *= cell.unsqueeze(1)
                kept = z * cell
            if m.new_hidden is not None:
                new = over_rows(m.new_hidden, rows)
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
                slope[0].mul_(over_rows(m.new_hidden, rows))
            d_gates = slopes.view(-1, size)
        # The recursion, backwards.
        dh = torch.zeros_like(h0, memory_format=torch.contiguous_format)
        dc = torch.zeros_like(dh) if lstm else None
        d_mask = torch.zeros_like(m.hidden) if needs[5] and m.hidden is not None else None
        d_mask_t = by_step(d_mask, sizes)
        h_before_t = h_before.split(sizes) if h_before is not None else ()
        gates_t, slopes_t = d_gates.split(sizes), slopes.split(sizes)
        d_hs_t = d_hs.split(sizes) if d_hs is not None else None
        d_cs_t = d_cs.split(sizes) if d_cs is not None else None
        m_h, new_c, new_h = (by_step(mask, sizes) for mask in (m.hidden, m.new_cell, m.new_hidden))
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
