"""Plots as the page draws them: everything is placed in percent of a box, so that text and dots keep their size.

A page that is 390 pixels wide and one of 1,280 get the same plot; only the box differs.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import pairwise

from matplotlib.ticker import MaxNLocator

COLOURS, MARKS, DASHES = 8, 7, 5
"""How many of each the page's style knows. No two have a common divisor, so that many series look different."""
MOST_POINTS = 300  # of a line: more are not seen on a screen, and make the file large


@dataclass(frozen=True)
class Look:
    """How a series is drawn: by colour and by form, either of which tells it from its neighbours."""

    colour: int
    mark: int
    dash: int

    @classmethod
    def of(cls, number: int) -> Look:
        """That of the series with a number from 0 on."""
        return cls(number % COLOURS, number % MARKS, number % DASHES)


@dataclass(frozen=True)
class Axis:
    """A linear axis.

    Args:
        label: in words, with the unit.
        low, high: its ends.
        ticks: place in percent of the axis, and what stands there.
    """

    label: str
    low: float
    high: float
    ticks: Sequence[tuple[float, str]]

    @classmethod
    def over(cls, label: str, values: Sequence[float], room: float = 0.06, zero: bool = False, ticks: int = 5) -> Axis:
        """An axis that reaches over values.

        Args:
            label: in words, with the unit.
            values: at least one.
            room: beyond them at each end, as a share of what they span.
            zero: whether it begins at zero.
            ticks: about so many, in round numbers.
        """
        low, high = min(values), max(values)
        if zero:
            low = min(low, 0.0)
        spread = (high - low) or abs(high) / 10 or 1.0
        low, high = low if zero and low == 0 else low - room * spread, high + room * spread
        inside = [t for t in MaxNLocator(ticks, steps=[1, 2, 2.5, 5, 10]).tick_values(low, high) if low <= t <= high]
        digits = _digits(inside)
        axis = cls(label, low, high, ())
        return cls(label, low, high, [(axis.place(float(t)), f"{t + 0.0:.{digits}f}") for t in inside])

    def place(self, value: float) -> float:
        """In percent of the axis; what lies outside is at its end."""
        return round(min(100.0, max(0.0, 100 * (value - self.low) / (self.high - self.low))), 2)

    def holds(self, value: float) -> bool:
        return self.low <= value <= self.high


@dataclass(frozen=True)
class Mark:
    """A dot of a plot: where, in percent from the left and from the top, and what it says."""

    left: float
    top: float
    title: str


@dataclass(frozen=True)
class Series:
    """What a plot shows of one thing.

    Args:
        name: as the legend calls it.
        look: colour and form.
        lines: each "x,y x,y ..." in percent, as SVG reads it.
        bands: areas, likewise.
        marks: dots.
        faint: whether lines are thin, as those of single seeds.
    """

    name: str
    look: Look
    lines: Sequence[str] = ()
    bands: Sequence[str] = ()
    marks: Sequence[Mark] = ()
    faint: bool = False


@dataclass(frozen=True)
class Plot:
    """A box with axes.

    Args:
        title: above it.
        x, y: axes.
        series: in the order of the legend.
        rules: dashed lines "x,y x,y" to compare with.
        said: what it shows, for those who cannot see it.
        note: below it.
    """

    title: str
    x: Axis
    y: Axis
    series: Sequence[Series]
    rules: Sequence[str] = ()
    said: str = ""
    note: str = ""


@dataclass(frozen=True)
class Sketch:
    """Points of a series in the unit of the axes, before the axes are known."""

    name: str
    look: Look
    curves: Sequence[Sequence[tuple[float, float]]]
    bands: Sequence[Sequence[tuple[float, float, float]]] = field(default=())  # x, low, high
    dots: bool = True
    faint: bool = False


def drawn(
    title: str,
    labels: tuple[str, str],
    sketches: Sequence[Sketch],
    *,
    rules: Sequence[Sequence[tuple[float, float]]] = (),
    zero: tuple[bool, bool] = (False, False),
    note: str = "",
) -> Plot | None:
    """A plot of curves whose axes reach over all points that are finite; None where there is none.

    Args:
        title: above it.
        labels: of the x and the y axis.
        sketches: what is drawn.
        rules: dashed lines to compare with.
        zero: whether the x and the y axis begin at zero.
        note: below it.
    """
    points = [point for one in sketches for curve in one.curves for point in curve if _finite(*point)]
    edges = [edge for one in sketches for band in one.bands for edge in band if _finite(*edge)]
    ruled = [point for rule in rules for point in rule]
    if not points:
        return None
    x = Axis.over(labels[0], [p[0] for p in [*points, *ruled]], 0.03, zero[0])
    heights = [p[1] for p in [*points, *ruled]] + [e[1] for e in edges] + [e[2] for e in edges]
    y = Axis.over(labels[1], heights, zero=zero[1], ticks=4)
    series = [_placed(one, x, y) for one in sketches if any(_finite(*p) for curve in one.curves for p in curve)]
    said = f"{title}: {labels[1]} against {labels[0]}, of {', '.join(one.name for one in series)}"
    return Plot(title, x, y, series, [path(rule, x, y) for rule in rules], said, note)


def path(points: Sequence[tuple[float, float]], x: Axis, y: Axis) -> str:
    """Points as SVG reads them, in percent from the left and from the top."""
    return " ".join(f"{x.place(a):g},{100 - y.place(b):.4g}" for a, b in points)


def thinned(points: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    """At most `MOST_POINTS` of a curve, evenly, with the first and the last."""
    if len(points) <= MOST_POINTS:
        return list(points)
    return [points[round(at * (len(points) - 1) / (MOST_POINTS - 1))] for at in range(MOST_POINTS)]


def _placed(one: Sketch, x: Axis, y: Axis) -> Series:
    lines, marks = [], []
    for curve in one.curves:
        whole = [point for point in curve if _finite(*point)]
        lines.append(path(thinned(whole), x, y))
        if one.dots or len(whole) == 1:  # a lone point has no line
            marks += [Mark(x.place(a), 100 - y.place(b), f"{one.name}: {b:.4g} at {a:.4g}") for a, b in whole]
    bands = []
    for band in one.bands:
        whole_band = [edge for edge in band if _finite(*edge)]
        around = [(a, high) for a, _, high in whole_band] + [(a, low) for a, low, _ in reversed(whole_band)]
        bands.append(path(around, x, y))
    return Series(one.name, one.look, lines, bands, marks, one.faint)


def _finite(*numbers: float | None) -> bool:
    return all(isinstance(number, (int, float)) and math.isfinite(number) for number in numbers)


def _digits(ticks: Sequence[float]) -> int:
    """Decimals that tell the ticks apart."""
    step = min((b - a for a, b in pairwise(ticks)), default=abs(ticks[0]) if ticks else 1.0)
    if step <= 0:
        return 0
    digits = max(0, -math.floor(math.log10(step) + 1e-9))
    return digits + 1 if abs(step * 10**digits - round(step * 10**digits)) > 1e-6 else digits
