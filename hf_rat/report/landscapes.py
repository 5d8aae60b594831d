"""Landscapes of the loss that `hf-rat analyze landscape` measured: lines as a plot, grids as surfaces that turn."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from hf_rat.experiments.sentences import code
from hf_rat.experiments.tables import Table
from hf_rat.report.analyses import about, looks_of
from hf_rat.report.folders import Analysis
from hf_rat.report.plots import Look, Plot, Sketch, drawn

_SETTINGS = ("seed", "radius", "points", "rule", "biases")
_STEEP = 20  # of the highest loss to the lowest: from here on a linear scale hides what is low


@dataclass(frozen=True)
class Surface:
    """One model's grid.

    Args:
        name: of the model.
        data: what the page's script draws: "x", "y", "z" (a loss that is not finite, or not measured yet, is None),
            "range", the lowest and the highest loss of all models of the file, so that they have one scale, and "log",
            whether that is logarithmic.
    """

    name: str
    data: Mapping[str, Any]


@dataclass(frozen=True)
class Landscape:
    """What one landscape.json shows.

    Args:
        path: of the file, as the page names it.
        about: rows, seed and radius, in words.
        looks: model -> how its line is drawn.
        line: the models' losses on a line; None for grids.
        surfaces: the models' grids.
        areas: of each model below each level; None without any.
    """

    path: str
    about: str
    looks: Mapping[str, Look]
    line: Plot | None
    surfaces: Sequence[Surface]
    areas: Table | None


def landscape_of(analysis: Analysis) -> Landscape:
    """The line or the surfaces of a file.

    Raises:
        ValueError: the file is none that `hf-rat analyze landscape` writes.
    """
    told = analysis.told
    try:
        xs, ys = told["xs"], told["ys"]
        grids = {
            name: [[_finite(z) for z in row or [None] * len(xs)] for row in one["losses"]]
            for name, one in told["models"].items()
        }
        areas = _areas(told)
    except (KeyError, TypeError, AttributeError) as error:
        raise ValueError(
            f"{analysis.path} is not what hf-rat analyze landscape writes ({type(error).__name__}: {error})"
        ) from None
    said = "; ".join([about(told), *(f"{name}: {told[name]}" for name in _SETTINGS if name in told)]).lstrip("; ")
    looks = looks_of(list(grids))
    if len(ys) == 1:
        sketches = [
            Sketch(
                name, looks[name], [[(x, z) for x, z in zip(xs, rows[0], strict=True) if z is not None]], dots=False
            )
            for name, rows in grids.items()
        ]
        line = drawn("Loss along the direction", ("distance from the weights", "loss"), sketches)
        return Landscape(str(analysis.path), said, looks, line, [], areas)
    heights = [z for rows in grids.values() for row in rows for z in row if z is not None]
    low, high = (min(heights), max(heights)) if heights else (0.0, 1.0)
    scale = {"range": [low, high], "log": 0 < low < high / _STEEP}
    surfaces = [Surface(name, {"x": xs, "y": ys, "z": rows, **scale}) for name, rows in grids.items()]
    return Landscape(str(analysis.path), said, looks, None, surfaces, areas)


def _areas(told: Mapping[str, Any]) -> Table | None:
    """The areas below each level; a landscape that is not finished has none."""
    found = {name: one["areas"] for name, one in told["models"].items() if one.get("areas")}
    if not found:
        return None
    header = ["model", *(f"below {level:.3g}" for level in told["levels"])]
    below = "The area of the plane on which the loss is below a level: the larger, the flatter around the weights."
    return Table(header, [[code(name), *(f"{area:.3g}" for area in areas)] for name, areas in found.items()], below)


def plotly() -> str:
    """The text of plotly.js, which draws surfaces in a browser.

    Raises:
        ValueError: the package plotly is not there.
    """
    try:
        from plotly.offline import get_plotlyjs
    except ImportError as error:
        raise ValueError("a landscape that turns needs plotly: pip install 'hf-rat[report]'") from error
    return str(get_plotlyjs())


def _finite(value: Any) -> float | None:
    """Five digits, which no eye tells from more."""
    return float(f"{value:.5g}") if isinstance(value, (int, float)) and math.isfinite(value) else None
