"""Pictures of landscapes: lines in one panel, grids as contours and as surfaces, on the same scale for all models."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from hf_rat.analysis.looks import name_below, png, tidy

_COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#6b6b6b", "#8c564b")
_LINES = ("-", "--", "-.", ":", (0, (5, 1, 1, 1, 1, 1)))  # as many as have no divisor in common with the colours
_ACROSS = 2  # panels side by side


def picture_of_lines(found: Mapping[str, Any]) -> bytes:
    """PNG: the loss of each model along the direction, and below it the accuracy where there is one.

    Args:
        found: what landscape.json has, of one row.
    """
    models = found["models"]
    scores = ["losses"] + ["accuracies"] * all(one["accuracies"] is not None for one in models.values())
    figure = Figure(figsize=(6.0, 0.8 + 2.6 * len(scores) + 0.2 * len(models)), dpi=100, layout="constrained")
    panels = figure.subplots(len(scores), 1, sharex=True, squeeze=False)[:, 0]
    for score, panel in zip(scores, panels, strict=True):
        for index, (name, one) in enumerate(models.items()):
            look = {"color": _COLOURS[index % len(_COLOURS)], "linestyle": _LINES[index % len(_LINES)]}
            panel.plot(found["xs"], _numbers(one[score])[0], label=name, **look)
        panel.set_ylabel({"losses": "loss", "accuracies": "accuracy"}[score])
        tidy(panel)
    panels[-1].set_xlabel(_step(found))
    name_below(figure, panels[0])
    return png(figure)


def picture_of_contours(found: Mapping[str, Any]) -> bytes:
    """PNG: a panel for each model, contours at `levels`, each with its number; the weights themselves as a cross.

    Args:
        found: what landscape.json has, of a grid.
    """
    figure, panels = _panels(found, {})
    for panel, one in zip(panels, found["models"].values(), strict=True):
        losses = np.ma.masked_invalid(_numbers(one["losses"]))
        place: Any = (found["xs"], found["ys"], losses)
        panel.contourf(*place, levels=found["levels"], cmap="cividis", alpha=0.5, extend="both")
        lines = panel.contour(*place, levels=found["levels"], colors="black", linewidths=0.8)
        panel.clabel(lines, fontsize=7, fmt="%.3g")
        panel.plot([0], [0], "+", color="black", markersize=8)
        panel.set_aspect("equal")
    figure.supxlabel(f"{_step(found)}\nlines of equal loss, the same levels everywhere; +: the weights", fontsize=8)
    return png(figure)


def picture_of_surfaces(found: Mapping[str, Any]) -> bytes:
    """PNG: a panel for each model with its surface, all on the same scale, cut off above the highest level.

    Args:
        found: what landscape.json has, of a grid.
    """
    figure, panels = _panels(found, {"projection": "3d"})
    grids = [_numbers(one["losses"]) for one in found["models"].values()]
    lowest, highest = min(np.nanmin(z) for z in grids), found["levels"][-1]
    x, y = np.meshgrid(found["xs"], found["ys"])
    for panel, losses in zip(panels, grids, strict=True):
        surface: Any = panel
        cut = np.minimum(np.nan_to_num(losses, nan=highest), highest)
        surface.plot_surface(x, y, cut, cmap="cividis", vmin=lowest, vmax=highest, rcount=51, ccount=51, linewidth=0)
        surface.set_zlim(lowest, highest)
        surface.tick_params(labelsize=7)
    figure.supxlabel(f"{_step(found)}\nheight: loss, cut off at {highest:.3g}", fontsize=8)
    return png(figure)


def _numbers(rows: Sequence[Sequence[float | None]]) -> np.ndarray:
    """(ys, xs), NaN where there is no finite number."""
    return np.array(rows, dtype=float)


def _step(found: Mapping[str, Any]) -> str:
    return f"step along the directions, 1: as long as the {found['rule']}'s weights; seed {found['seed']}"


def _panels(found: Mapping[str, Any], kind: Mapping[str, Any]) -> tuple[Figure, list[Axes]]:
    names = list(found["models"])
    side = min(_ACROSS, len(names))
    deep = -(-len(names) // side)
    figure = Figure(figsize=(max(3.0 * side, 4.6), 3.1 * deep + 0.3), dpi=100, layout="constrained")
    panels = figure.subplots(deep, side, squeeze=False, subplot_kw=dict(kind)).ravel().tolist()
    for panel in panels[len(names) :]:
        panel.remove()
    for panel, name in zip(panels, names, strict=False):
        panel.set_title(textwrap.shorten(name, 40, placeholder=" ..."), fontsize=9, parse_math=False)
    return figure, panels[: len(names)]
