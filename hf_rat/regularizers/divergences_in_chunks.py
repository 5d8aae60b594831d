"""A divergence over a large vocabulary: a chunk of positions at a time.

So no more than a chunk is alive beyond the logits and their gradients. What is most used there has its slopes written
out, in fewer passes over the memory than autograd makes, for logits of which none rules a class out. In fp32 on a CPU,
where exponentials are dear, slopes are found together with the values, and the backward scales them; else the backward
visits the chunks once more, and no gradient is alive before it is needed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

CACHED = 2**16
"""What is written out looks at chunks of so many entries on a CPU: they stay in a core's cache."""

Slope = Tensor | float
Needs = Sequence[bool]
Found = tuple[Tensor, tuple[Tensor | None, Tensor | None]]


def _logit_mse(p: Tensor, q: Tensor, slope: Slope, needs: Needs) -> Found:
    apart = p - q
    if not any(needs):
        return apart.square_().mean(-1, keepdim=True), (None, None)
    value = _dot(apart, apart) / p.size(-1)
    apart *= slope * (2 / p.size(-1))
    return value, (apart if needs[0] else None, apart.neg() if needs[1] else None)


def _kl(p: Tensor, q: Tensor, slope: Slope, needs: Needs) -> Found:
    ratio, weight = p - q, p.exp()
    value = _dot(weight, ratio)
    to_q = q.exp().sub_(weight).mul_(slope) if needs[1] else None
    return value, (ratio.sub_(value).mul_(weight).mul_(slope) if needs[0] else None, to_q)


def _js(p: Tensor, q: Tensor, slope: Slope, needs: Needs) -> Found:
    # With m the middle, log p/m = -log(1 + (q/p - 1) / 2), and log q/m is log q/p more: both are 0 where p is q. Where
    # p is e^-80 of q, it no longer counts.
    ratio = (p - q).clamp_(min=-80.0)
    over_p = ratio.neg().expm1_().mul_(0.5).log1p_().neg_()
    sides = [(p.exp(), over_p), (q.exp(), over_p - ratio)]
    values = [_dot(weight, over) for weight, over in sides]
    each = zip(sides, values, needs, strict=True)
    first, second = (over.sub_(v).mul_(weight).mul_(slope / 2) if need else None for (weight, over), v, need in each)
    return (values[0] + values[1]) / 2, (first, second)


def _bi_kl(p: Tensor, q: Tensor, slope: Slope, needs: Needs) -> Found:
    ratio, weights = p - q, (p.exp(), q.exp())
    apart = weights[0] - weights[1]
    first, second = (
        (ratio - _dot(weight, ratio)).mul_(weight).add_(apart).mul_(half) if need else None
        for weight, half, need in zip(weights, (slope / 2, -slope / 2), needs, strict=True)
    )
    return _dot(apart, ratio) / 2, (first, second)


WRITTEN_OUT: dict[str, Callable[[Tensor, Tensor, Slope, Needs], Found]] = {
    "logit_mse": _logit_mse,
    "kl": _kl,
    "js": _js,
    "bi_kl": _bi_kl,
}
"""name -> (logits, or log-probabilities, of both, slopes of the values, (rows, 1) or a number, which slopes at the two
are needed) -> (rows, 1) values, and the slopes at both."""


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
        needs = (False, False)
        if name not in WRITTEN_OUT or not all(bool(z.amin() > torch.finfo(z.dtype).min) for z in (p, q)):
            ctx.name = None
        elif p.device.type == "cpu":
            ctx.size = min(size, CACHED)
            # Slopes of fewer bits would be rounded before they are scaled; logit_mse's cost less than keeping them.
            if p.dtype == q.dtype == torch.float32 and name != "logit_mse":
                needs = ctx.needs_input_grad[:2]
        ctx.gradients = _gradients((p, q), needs, where)
        p, q = _rows(p, where), _rows(q, where)
        values = [p.new_empty(0, dtype=torch.float32)]
        for _, rows in _chunks(p, ctx.size, where):
            if ctx.name is None:
                values.append(compare(p[rows], q[rows]))
                continue
            value, found = _compare(ctx.name, p[rows], q[rows], 1.0, needs)
            values.append(value.squeeze(-1))
            _put(found, ctx.gradients, rows, where)
        return torch.cat(values)

    @staticmethod
    def backward(ctx: Any, slopes: Tensor) -> tuple[Tensor | None, ...]:
        if torch.is_grad_enabled():  # create_graph=True; autograd would take the second derivative for zero
            raise RuntimeError("a divergence over a large vocabulary has no second derivative: leave out create_graph")
        p, q, *where = ctx.saved_tensors
        nothing = [None] * (3 + len(where))
        gradients, ctx.gradients = ctx.gradients, (None, None)
        if any(gradient is not None for gradient in gradients):  # else a retained graph is swept again
            at = slopes.new_zeros(p.shape[:-1]).index_put(where, slopes) if where else slopes.view(p.shape[:-1])
            return *[g if g is None else g.mul_(at.unsqueeze(-1)) for g in gradients], *nothing
        needs = ctx.needs_input_grad[:2]
        gradients = _gradients((p, q), needs, where)
        p, q = _rows(p, where), _rows(q, where)
        for chunk, rows in _chunks(p, ctx.size, where):
            if ctx.name is None:
                pair = [z[rows].requires_grad_(g is not None) for z, g in zip((p, q), gradients, strict=True)]
                with torch.enable_grad():
                    values = ctx.compare(*pair)
                asked = iter(torch.autograd.grad(values, [z for z in pair if z.requires_grad], slopes[chunk]))
                found = tuple(next(asked) if g is not None else None for g in gradients)
            else:
                _, found = _compare(ctx.name, p[rows], q[rows], slopes[chunk].unsqueeze(-1), needs)
            _put(found, gradients, rows, where)
        return *gradients, *nothing


def _compare(name: str, p: Tensor, q: Tensor, slope: Slope, needs: Needs) -> Found:
    if name == "logit_mse":
        p, q = p.float(), q.float()
    else:
        p, q = p.log_softmax(-1, dtype=torch.float32), q.log_softmax(-1, dtype=torch.float32)
    return WRITTEN_OUT[name](p, q, slope, needs)


def _gradients(pair: tuple[Tensor, Tensor], needs: Needs, where: Sequence[Tensor]) -> list[Tensor | None]:
    """To be filled: of all rows where every row counts, else of those that count, among zeros."""
    begin = torch.zeros_like if where else torch.empty_like
    return [
        begin(z, memory_format=torch.contiguous_format) if need else None for z, need in zip(pair, needs, strict=True)
    ]


def _put(
    slopes: Sequence[Tensor | None], gradients: Sequence[Tensor | None], rows: Any, where: Sequence[Tensor]
) -> None:
    for gradient, slope in zip(gradients, slopes, strict=True):
        if gradient is not None and slope is not None:
            _rows(gradient, where)[rows] = slope.to(gradient.dtype)


def _rows(logits: Tensor, where: Sequence[Tensor]) -> Tensor:
    """What chunks are taken of. Autograd adds to a gradient in place, unless it is such a view."""
    return logits if where else logits.flatten(0, -2)


def _chunks(logits: Tensor, size: int, where: Sequence[Tensor]) -> Iterator[tuple[slice, Any]]:
    """Pieces of the positions, and their rows of the logits, `size` entries."""
    rows = max(1, size // logits.shape[-1])
    for start in range(0, where[0].numel() if where else logits.shape[0], rows):
        chunk = slice(start, start + rows)
        yield chunk, tuple(column[chunk] for column in where) if where else chunk
