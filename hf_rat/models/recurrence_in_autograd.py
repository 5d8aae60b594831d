"""The recursion of RNN, LSTM and GRU in plain autograd, with all that `Recurrence` leaves out.

It travels with a checkpoint.
"""

from __future__ import annotations

import torch
from torch import Tensor

from .padding import Rows
from .recurrent_dropouts import Masks, by_step


def run_in_autograd(
    mode: str,
    rows: Rows,
    x: Tensor,
    w: Tensor,
    b: Tensor | None,
    h0: Tensor,
    c0: Tensor | None,
    masks: Masks,
    gated: bool,
    reset_after: bool = True,
) -> tuple[Tensor, Tensor | None]:
    """The same as `Recurrence`, also for second derivatives, masks per gate, weights per example and the other GRU.

    Args:
        w: (gates * hidden, hidden), or (batch, gates * hidden, hidden).
        b: (gates * hidden,), or (batch, gates * hidden), where x has no such bias yet.
        gated: the mask on h has one more dimension, of gates, before its last.
        reset_after: False: the reset gate of a GRU acts on h, before the product.
    """
    sizes, size, gates = rows.sizes, w.size(-1), w.size(-2) // w.size(-1)
    masks_t = [by_step(mask, sizes, gated and place == 0) for place, mask in enumerate(masks)]
    each = w.unflatten(-2, (gates, size))
    biases = None if b is None else b.unflatten(-1, (gates, size))

    def multiply(inner: Tensor, some: slice) -> tuple[Tensor, ...]:
        """What some gates get from h: (n, gates, hidden) by their weights, and biases."""
        n = inner.size(0)
        if w.dim() == 2:
            product = torch.einsum("bgi,gji->bgj", inner, each[some])
        else:
            product = torch.einsum("bgi,bgji->bgj", inner, each[:n, some])
        if biases is not None:
            product = product + (biases[some] if biases.dim() == 2 else biases[:n, some])
        return product.unbind(1)

    h, c = h0, c0
    hs, cs = [], []
    for t, (n, x_t) in enumerate(zip(sizes, x.split(sizes), strict=True)):
        m_h, m_g, m_c, new_c, new_h = (mask[t] for mask in masks_t)
        before = h[:n]
        inner = before.unsqueeze(1).expand(n, gates, size)
        if m_h is not None:
            inner = inner * (m_h if gated else m_h.unsqueeze(1))
        a = x_t.view(n, gates, size).unbind(1)
        if mode == "LSTM":
            assert c is not None
            u = multiply(inner, slice(None))
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
            u = multiply(inner[:, :2], slice(2))
            r, z = (torch.sigmoid(a[k] + u[k]) for k in (0, 1))
            last = inner[:, 2:] if reset_after else r.unsqueeze(1) * inner[:, 2:]
            (u_g,) = multiply(last, slice(2, 3))
            g = torch.tanh(a[2] + (r * u_g if reset_after else u_g))
            new = torch.lerp(g if m_g is None else m_g * g, before, z)
            if m_c is not None:
                new = m_c * new
        else:
            (u_h,) = multiply(inner, slice(None))
            new = torch.tanh(a[0] + u_h) if mode == "RNN_TANH" else torch.relu(a[0] + u_h)
        if new_h is not None:
            new = torch.lerp(before, new, new_h)
        hs.append(new)
        h = torch.cat([new, h[n:]])
    return torch.cat([h0[:0], *hs]), None if c0 is None else torch.cat([c0[:0], *cs])
