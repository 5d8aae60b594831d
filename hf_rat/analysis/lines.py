"""A model at many points of a line through its weights, the first products made once for all of them.

On a line w(t) = w_0 + t d, whatever a model makes of its weights by sums and products is a polynomial of t: a word's
vector has degree 1, their product with the next weights (a convolution, a recurrent layer's input) degree 2. Its
coefficients are tensors that do not depend on t. They are found at the first point; at the others a sum of three
tensors stands for the product. From the first function that is none of these on (a maximum, a sigmoid, a
normalisation), a forward runs on plain tensors, as it always does.

`_Polynomial` is a tensor that stands for such a polynomial. Torch hands each operation on one to `Line`, which either
knows its rule, or puts the values at the point in its place.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_flatten, tree_unflatten

aten = torch.ops.aten
_DEGREE = 2  # a product of more is made at each point
# Linear in the first argument, whatever the others are.
_LINEAR = {
    aten.alias.default, aten.cat.default, aten.clone.default, aten.embedding.default, aten.expand.default,
    aten.gather.default, aten.index.Tensor, aten.index_select.default, aten.mean.dim, aten.neg.default,
    aten.permute.default, aten.repeat.default, aten.select.int, aten.slice.Tensor, aten.split.Tensor,
    aten.split_with_sizes.default, aten.squeeze.dim, aten.sum.dim_IntList, aten.t.default, aten.transpose.int,
    aten.unbind.int, aten.unfold.default, aten.unsqueeze.default, aten.view.default, aten._unsafe_view.default,
}  # fmt: skip
_FILLING = {aten.masked_fill.Scalar: 2, aten.constant_pad_nd.default: 2}  # linear where this argument is zero
_SUMS = {aten.add.Tensor, aten.sub.Tensor}
_PRODUCTS = {aten.mm.default, aten.bmm.default, aten.mul.Tensor}
_SCALINGS = {aten.mul.Tensor, aten.div.Tensor}  # by a number

Coefficients = list[Tensor]


class _Polynomial(torch.Tensor):
    """Stands for sum_k coefficients[k] t^k at the point t where its line is."""

    line: Line
    coefficients: Coefficients
    value: Tensor | None

    @staticmethod
    def __new__(cls, line: Line, coefficients: Coefficients) -> _Polynomial:
        first = coefficients[0]
        found = torch.Tensor._make_wrapper_subclass(
            cls, first.size(), strides=first.stride(), dtype=first.dtype, device=first.device
        )
        found.line, found.coefficients, found.value = line, coefficients, None
        return found

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:  # type: ignore[override]
        flat, form = tree_flatten((args, kwargs or {}))
        line = next(x.line for x in flat if isinstance(x, _Polynomial))
        return line.run(func, flat, form)


class _Of(NamedTuple):
    """A polynomial that went into an operation."""

    coefficients: Coefficients


class _Known(NamedTuple):
    """An operation of a former point: what went in, and the coefficients of each tensor that came out."""

    func: Any
    flat: list[Any]
    found: list[Coefficients] | None
    several: bool

    def same(self, func: Any, flat: list[Any]) -> bool:
        return self.func is func and len(flat) == len(self.flat) and all(map(_same, self.flat, flat))


def _same(known: Any, now: Any) -> bool:
    if isinstance(known, _Of):
        return isinstance(now, _Polynomial) and now.coefficients is known.coefficients
    if isinstance(known, Tensor):
        return isinstance(now, Tensor) and not isinstance(now, _Polynomial) and torch.equal(known, now)
    return type(known) is type(now) and known == now


class Line:
    """A model on one batch, at points of a line through its weights.

    The model is not written to. A forward must go the same way at every point up to its first function that is no sum
    or product; where an operation gets something else than at the points before, it is done anew.

    Args:
        model: in evaluation mode.
        batch: what its forward takes.
        start: the weights at t = 0, by their names in `model.named_parameters()`.
        direction: how far each goes until t = 1; those that are missing, or zero, do not move.

    Attributes:
        products: how many products of two polynomials one forward has. Without one there is nothing to save.
    """

    def __init__(
        self, model: nn.Module, batch: Mapping[str, Any], start: Mapping[str, Tensor], direction: Mapping[str, Tensor]
    ) -> None:
        self._model, self._batch = model, batch
        self._weights: dict[str, Coefficients] = {}
        for name, parameter in model.named_parameters():
            move = direction.get(name)
            here = start.get(name, parameter).detach()
            self._weights[name] = [here] if move is None or not move.any() else [here, move]
        self._known: list[_Known] = []
        self._place, self._t = 0, 0.0
        self.products = 0

    @torch.no_grad()
    def at(self, t: float) -> Any:
        """What the model returns at w_0 + t d."""
        self._place, self._t = 0, t
        weights = {name: _Polynomial(self, coefficients) for name, coefficients in self._weights.items()}
        return torch.func.functional_call(self._model, weights, (), dict(self._batch))  # type: ignore[arg-type]

    def run(self, func: Any, flat: list[Any], form: Any) -> Any:
        """An operation on at least one polynomial."""
        polynomials = [x for x in flat if isinstance(x, _Polynomial)]
        # What is no polynomial and no integer may be another one at each point.
        plain = any(isinstance(x, Tensor) and not isinstance(x, _Polynomial) and x.is_floating_point() for x in flat)
        if plain or not all(x.coefficients for x in polynomials):
            return self._plainly(func, flat, form)
        place = self._place
        self._place += 1
        if place >= len(self._known) or not self._known[place].same(func, flat):
            del self._known[place:]
            self._known.append(self._find(func, flat, form))
        known = self._known[place]
        if known.found is None:
            return self._plainly(func, flat, form)
        found = [_Polynomial(self, coefficients) for coefficients in known.found]
        return found if known.several else found[0]

    def _plainly(self, func: Any, flat: list[Any], form: Any) -> Any:
        """On the values at this point."""
        args, kwargs = tree_unflatten([self._value(x) if isinstance(x, _Polynomial) else x for x in flat], form)
        found = func(*args, **kwargs)
        if func._schema.is_mutable:
            args, kwargs = tree_unflatten(flat, form)
            given = {**dict(zip((x.name for x in func._schema.arguments), args, strict=False)), **kwargs}
            for argument in func._schema.arguments:
                written = given.get(argument.name)
                if isinstance(written, _Polynomial) and argument.alias_info and argument.alias_info.is_write:
                    written.coefficients = []  # no polynomial any more, but its value, into which was written
                    return written
        return found

    def _value(self, x: _Polynomial) -> Tensor:
        if x.value is None:
            first, *others = x.coefficients
            value = first.clone() if not others else torch.add(first, others[0], alpha=self._t)
            for power, coefficient in enumerate(others[1:], 2):
                value.add_(coefficient, alpha=self._t**power)
            x.value = value
        return x.value

    def _find(self, func: Any, flat: list[Any], form: Any) -> _Known:
        args, kwargs = tree_unflatten(flat, form)
        found = self._coefficients(func, args, kwargs)
        several = found is not None and isinstance(found[0], (list, tuple))
        if several:
            found = [list(each) for each in zip(*found, strict=True)]
        elif found is not None:
            found = [found]
        into = [_Of(x.coefficients) if isinstance(x, _Polynomial) else x for x in flat]
        return _Known(func, into, found, several)

    def _coefficients(self, func: Any, args: Any, kwargs: Any) -> Any:
        """The coefficients of what an operation makes of polynomials; None where that is no polynomial."""
        first: Any = args[0]
        second: Any = args[1] if len(args) > 1 else None
        both = isinstance(first, _Polynomial) and isinstance(second, _Polynomial)
        if func in _SUMS and both:
            parts = _together([first, second])
            return [func(*each, **kwargs) for each in parts]
        if func in _PRODUCTS and both:
            return self._product(func, first, second)
        if func is aten.addmm.default and all(isinstance(x, _Polynomial) for x in args) and not kwargs:
            return _with_bias(self._product(aten.mm.default, *args[1:]), args[0].coefficients)
        if func is aten.convolution.default and both:
            (_, _, bias, *settings) = args
            found = self._product(lambda x, w: func(x, w, None, *settings), first, second)
            inner = [1] * (first.dim() - 2)
            return _with_bias(found, [] if bias is None else [x.view(-1, *inner) for x in bias.coefficients])
        if func is aten.cat.default and all(isinstance(x, _Polynomial) for x in first):
            return [func(list(each), *args[1:], **kwargs) for each in _together(first)]
        filling = func in _FILLING and not (args[_FILLING[func]] if len(args) > _FILLING[func] else 0)
        scaling = func in _SCALINGS and isinstance(second, (int, float))
        others = any(isinstance(x, _Polynomial) for x in tree_flatten((args[1:], kwargs))[0])
        if isinstance(first, _Polynomial) and not others and (func in _LINEAR or filling or scaling):
            return [func(x, *args[1:], **kwargs) for x in first.coefficients]
        return None

    def _product(self, func: Any, first: _Polynomial, second: _Polynomial) -> Coefficients | None:
        degree = len(first.coefficients) + len(second.coefficients) - 2
        if not 0 < degree <= _DEGREE:
            return None
        self.products += 1
        found: list[Tensor | None] = [None] * (degree + 1)
        for i, x in enumerate(first.coefficients):
            for j, y in enumerate(second.coefficients):
                product, former = func(x, y), found[i + j]
                found[i + j] = product if former is None else former.add_(product)
        return found  # type: ignore[return-value]


def _with_bias(found: Coefficients | None, bias: Coefficients) -> Coefficients | None:
    for coefficient, addition in zip(found or (), bias, strict=False):  # a product has at least as many
        coefficient.add_(addition)
    return found


def _together(polynomials: Sequence[_Polynomial]) -> list[tuple[Tensor, ...]]:
    """For each power the coefficients of all, zeros where one has none."""
    most = max(len(x.coefficients) for x in polynomials)
    filled = [
        [*x.coefficients, *[torch.zeros_like(x.coefficients[0])] * (most - len(x.coefficients))] for x in polynomials
    ]
    return list(zip(*filled, strict=True))
