"""The loss around a model's weights, on a line or a grid: f(x, y) = L(w + x d_1 + y d_2) (Li et al. 2018)."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from hf_rat.analysis.directions import Weights
from hf_rat.analysis.evaluation import Batches, Score, evaluate, total
from hf_rat.analysis.lines import Line
from hf_rat.analysis.unchanged import unchanged

_CLOSE = 1e-4  # of the larger of the loss and 1: what rounding may make of it


@dataclass(frozen=True)
class Row:
    """The points (x, y) of one y.

    Args:
        number: of the row, its place in the second axis.
        losses: mean loss at each x; not finite where the model's is not.
        accuracies: share of labels that are met; None where labels are no classes.
    """

    number: int
    losses: list[float]
    accuracies: list[float] | None


def axis(radius: float, points: int) -> list[float]:
    """Evenly from -radius to radius; an odd number of points has the weights themselves in the middle.

    Raises:
        ValueError: a radius that is not positive, or fewer than 3 points.
    """
    if not (radius > 0 and math.isfinite(radius)):
        raise ValueError(f"radius={radius!r} is not a positive number")
    if points < 3:
        raise ValueError(f"points={points!r}: an axis has at least 3")
    middle = (points - 1) / 2
    return [radius * (place - middle) / middle for place in range(points)]


def landscape_rows(
    model: nn.Module,
    batches: Batches,
    directions: Sequence[Weights],
    xs: Sequence[float],
    ys: Sequence[float] = (0.0,),
    done: Collection[int] = (),
    say: Callable[[str], Any] = print,
) -> Iterator[Row]:
    """Measure a landscape row by row, in evaluation mode; each row is the same whatever other rows are measured.

    Where a model begins with products of weights (word vectors and a convolution, or a recurrent layer's input), these
    are made once for all points of a row (`Line`); any other model has its weights written for each point. Batches of
    texts of like length have the least padding. The model is what it was after each row and at the end, bit for bit.

    Args:
        model: which returns its loss.
        batches: what its forward takes, with labels, on its device. The loss is the mean over all labels, as that of
            each batch is over its own.
        directions: one for a line, two for a grid.
        xs: how far to go along the first.
        ys: how far to go along the second.
        done: numbers of rows to leave out.
        say: told, once, where a model's products cannot be made once for a row.

    Raises:
        ValueError: no batch, the number of directions, or a model that returns no loss.
    """
    if not batches:
        raise ValueError("batches is empty: a loss needs examples")
    if len(directions) not in (1, 2) or (len(directions) == 1 and list(ys) != [0.0]):
        raise ValueError(f"directions: {len(directions)} of them, expected 1 for a line and 2 for a grid")
    left = [number for number in range(len(ys)) if number not in done]
    if not left:
        return
    along = directions[0]
    with unchanged(model):
        at_once = _at_once(model, batches[0], along, (xs[0], xs[-1]), say)
    for number in left:
        with unchanged(model):
            start = _start(model, along, directions[1:], ys[number])
            points = _by_line if at_once else _by_point
            found = list(points(model, batches, start, along, xs))
        accuracies = [right for _, right in found if right is not None]
        yield Row(number, [loss for loss, _ in found], accuracies if len(accuracies) == len(found) else None)


@torch.no_grad()
def _start(model: nn.Module, along: Weights, across: Sequence[Weights], y: float) -> Weights:
    """The weights at x = 0 of a row."""
    weights = {name: p.detach().clone() for name, p in model.named_parameters() if name in along}
    for direction in across:
        for name, weight in weights.items():
            weight.add_(direction[name], alpha=y)
    return weights


@torch.no_grad()
def _write(model: nn.Module, start: Weights, along: Weights, x: float) -> None:
    for name, parameter in model.named_parameters():
        if name in along:
            torch.add(start[name], along[name], alpha=x, out=parameter.data)


def _by_point(
    model: nn.Module, batches: Batches, start: Weights, along: Weights, xs: Sequence[float]
) -> Iterator[tuple[float, float | None]]:
    for x in xs:
        _write(model, start, along, x)
        yield evaluate(model, batches, type(model).__name__)


def _by_line(
    model: nn.Module, batches: Batches, start: Weights, along: Weights, xs: Sequence[float]
) -> list[tuple[float, float | None]]:
    scores: list[list[Score]] = [[] for _ in xs]
    for batch in batches:
        line = Line(model, batch, start, along)
        for found, x in zip(scores, xs, strict=True):
            found.append(Score.of(line.at(x), batch, type(model).__name__))
    return [total(found) for found in scores]


def _at_once(
    model: nn.Module, batch: Mapping[str, Tensor], along: Weights, ends: tuple[float, float], say: Callable[[str], Any]
) -> bool:
    """Whether a row's products are made once: there are some, and the last point's loss is that of the plain model."""
    start, name = _start(model, along, (), 0.0), type(model).__name__
    try:
        line = Line(model, batch, start, along)
        losses = [float(Score.of(line.at(x), batch, name).loss) for x in ends]
    except Exception as error:  # whatever a module does that knows plain tensors only
        say(f"{name}: each point is measured by itself ({type(error).__name__} where a row's are measured together)")
        return False
    if not line.products:
        return False
    _write(model, start, along, ends[1])
    plain, _ = evaluate(model, [batch], name)
    if abs(losses[1] - plain) <= _CLOSE * max(abs(plain), 1.0) or (math.isnan(plain) and math.isnan(losses[1])):
        return True
    say(f"{name}: each point is measured by itself (together, a row's last loss is {losses[1]:.6g}, not {plain:.6g})")
    return False


def area_below(xs: Sequence[float], ys: Sequence[float], losses: Sequence[Sequence[float]], level: float) -> float:
    """The area where a landscape is below a loss, in units of its axes, along the polygons of its contour.

    Args:
        xs: of the columns.
        ys: of the rows.
        losses: losses[j][i] at (xs[i], ys[j]); what is not finite is above any level.
        level: the loss.

    Returns:
        From 0 to the area of the whole rectangle, (xs[-1] - xs[0]) (ys[-1] - ys[0]).
    """
    from contourpy import FillType, contour_generator  # matplotlib's own

    z = np.array(losses, dtype=float)
    z[~np.isfinite(z)] = np.finfo(float).max
    lowest = float(z.min())
    if lowest >= level:
        return 0.0
    filled = contour_generator(xs, ys, z, fill_type=FillType.OuterOffset).filled(lowest - 1.0, level)
    return sum(
        abs(_signed(points[begin:end])) * (1 if place == 0 else -1)
        for points, offsets in zip(*filled, strict=True)
        for place, (begin, end) in enumerate(pairwise(offsets))
    )


def _signed(polygon: np.ndarray) -> float:
    """The area of a closed polygon (points, 2), by the shoelace formula."""
    x, y = polygon.T
    return float(0.5 * np.sum(x[:-1] * y[1:] - x[1:] * y[:-1]))
