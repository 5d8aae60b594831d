"""A divergence over a large vocabulary: a chunk of positions at a time, and once more in the backward.

So no more than a chunk is alive beyond the logits and their gradients. What is most used there has its slopes written
out, in fewer passes over the memory than autograd makes, for logits of which none rules a class out.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

CACHED = 2**16
"""What is written out looks at chunks of so many entries on a CPU: they stay in a core's cache."""

Slopes = tuple[Tensor | None, Tensor | None]


def _logit_mse(p: Tensor, q: Tensor, slope: Tensor | None, needs: Sequence[bool]) -> Tensor | Slopes:
    apart = p - q
    if slope is None:
        return apart.square_().mean(-1)
    apart *= slope * (2 / p.size(-1))
    return apart if needs[0] else None, apart.neg() if needs[1] else None


def _kl(p: Tensor, q: Tensor, slope: Tensor | None, needs: Sequence[bool]) -> Tensor | Slopes:
    ratio, weight = p - q, p.exp()
    value = _dot(weight, ratio)
    if slope is None:
        return value.squeeze(-1)
    to_q = q.exp().sub_(weight).mul_(slope) if needs[1] else None
    return ratio.sub_(value).mul_(weight).mul_(slope) if needs[0] else None, to_q


def _js(p: Tensor, q: Tensor, slope: Tensor | None, needs: Sequence[bool]) -> Tensor | Slopes:
    # With m the middle, log p/m = -log(1 + (q/p - 1) / 2), and log q/m is log q/p more: both are 0 where p is q. Where
    # p is e^-80 of q, it no longer counts.
    ratio = (p - q).clamp_(min=-80.0)
    over_p = ratio.neg().expm1_().mul_(0.5).log1p_().neg_()
    sides = [(p, over_p), (q, over_p - ratio)]
    weights = [side.exp() for side, _ in sides]
    values = [_dot(weight, over) for weight, (_, over) in zip(weights, sides, strict=True)]
    if slope is None:
        return (values[0] + values[1]).squeeze(-1) / 2
    each = zip(weights, sides, values, needs, strict=True)
    first, second = (over.sub_(v).mul_(w).mul_(slope / 2) if need else None for w, (_, over), v, need in each)
    return first, second


def _bi_kl(p: Tensor, q: Tensor, slope: Tensor | None, needs: Sequence[bool]) -> Tensor | Slopes:
    ratio, weights = p - q, (p.exp(), q.exp())
    apart = weights[0] - weights[1]
    if slope is None:
        return _dot(apart, ratio).squeeze(-1) / 2
    found = [
        (ratio - _dot(weight, ratio)).mul_(weight).add_(apart).mul_(half) if need else None
        for weight, half, need in zip(weights, (slope / 2, -slope / 2), needs, strict=True)
    ]
    return found[0], found[1]


WRITTEN_OUT: dict[str, Callable[[Tensor, Tensor, Tensor | None, Sequence[bool]], Any]] = {
    "logit_mse": _logit_mse,
    "kl": _kl,
    "js": _js,
    "bi_kl": _bi_kl,
}
"""name -> (logits, or log-probabilities, of both, (rows, 1) slopes of the values or None, which slopes are needed) ->
the values, or the slopes at both logits."""


def _dot(x: Tensor, y: Tensor) -> Tensor:
    return (x * y).sum(-1, keepdim=True)


class Chunked(torch.autograd.Function):
    """`compare(p[where], q[where])`, without `where` of all rows; (rows,). Only a chunk of `size` entries is alive.

    Where `name` is written out and neither rules a class out, by its own formula.
    """

    @staticmethod
    def forward(
        ctx: Any,
        p: Tensor,
        q: Tensor,
        compare: Callable[[Tensor, Tensor], Tensor],
        name: str,
        size: int,
        *where: Tensor,
    ) -> Tensor:
        ctx.save_for_backward(p, q, *where)
        ctx.compare, ctx.name, ctx.size = compare, name, max(size, p.numel() // 32)
        if name not in WRITTEN_OUT or not all(bool(z.amin() > torch.finfo(z.dtype).min) for z in (p, q)):
            ctx.name = None
        else:
            ctx.size = min(size, CACHED) if p.device.type == "cpu" else max(size, p.numel() // 32)
        p, q = _rows(p, where), _rows(q, where)
        values, norms = [p.new_empty(0, dtype=torch.float32)], []
        for _, rows in _chunks(p, ctx.size, where):
            if ctx.name is None:
                values.append(compare(p[rows], q[rows]))
                continue
            pair = p[rows].float(), q[rows].float()
            if ctx.name != "logit_mse":
                norms.append([z.logsumexp(-1, keepdim=True) for z in pair])
                pair = _normalize(pair, norms[-1])
            values.append(WRITTEN_OUT[ctx.name](*pair, None, (True, True)))
        ctx.norms = norms
        return torch.cat(values)

    @staticmethod
    def backward(ctx: Any, slopes: Tensor) -> tuple[Tensor | None, ...]:
        if torch.is_grad_enabled():  # create_graph=True; autograd would take the second derivative for zero
            raise RuntimeError("a divergence over a large vocabulary has no second derivative: leave out create_graph")
        p, q, *where = ctx.saved_tensors
        needs = ctx.needs_input_grad[:2]
        begin = torch.zeros_like if where else torch.empty_like
        gradients = [
            begin(z, memory_format=torch.contiguous_format) if needed else None
            for z, needed in zip((p, q), needs, strict=True)
        ]
        towards = [None if gradient is None else _rows(gradient, where) for gradient in gradients]
        p, q = _rows(p, where), _rows(q, where)
        for number, (chunk, rows) in enumerate(_chunks(p, ctx.size, where)):
            if ctx.name is None:
                pair = [z[rows].requires_grad_(g is not None) for z, g in zip((p, q), gradients, strict=True)]
                with torch.enable_grad():
                    values = ctx.compare(*pair)
                asked = iter(torch.autograd.grad(values, [z for z in pair if z.requires_grad], slopes[chunk]))
                found = tuple(next(asked) if g is not None else None for g in gradients)
            else:
                both = p[rows].float(), q[rows].float()
                if ctx.norms:
                    both = _normalize(both, ctx.norms[number])
                found = WRITTEN_OUT[ctx.name](*both, slopes[chunk].unsqueeze(-1), needs)
            for gradient, slope in zip(towards, found, strict=True):
                if gradient is not None and slope is not None:
                    gradient[rows] = slope.to(gradient.dtype)
        return *gradients, None, None, None, *[None] * len(where)


def _rows(logits: Tensor, where: Sequence[Tensor]) -> Tensor:
    """What chunks are taken of. Autograd adds to a gradient in place, unless it is such a view."""
    return logits if where else logits.flatten(0, -2)


def _normalize(pair: tuple[Tensor, Tensor], norms: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
    """Log-probabilities."""
    return pair[0] - norms[0], pair[1] - norms[1]


def _chunks(logits: Tensor, size: int, where: Sequence[Tensor]) -> Iterator[tuple[slice, Any]]:
    """Pieces of the positions, and their rows of the logits, `size` entries."""
    rows = max(1, size // logits.shape[-1])
    for start in range(0, where[0].numel() if where else logits.shape[0], rows):
        chunk = slice(start, start + rows)
        yield chunk, tuple(column[chunk] for column in where) if where else chunk
