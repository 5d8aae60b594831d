"""The picture of a curve of robustness: accuracy and loss of several models against what grows."""

from __future__ import annotations

import io
from collections.abc import Mapping
from typing import Any

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

_COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#6b6b6b", "#8c564b")
_MARKS = ("o", "s", "D", "^", "v", "P", "X")  # as many as have no divisor in common with the colours
_LINES = ("-", "--", "-.", ":")


def picture_of_curve(name: str, curve: Mapping[str, Any]) -> bytes:
    """PNG, 600 pixels wide: a panel for the accuracy, if there is one, and a panel for the loss.

    Args:
        name: of what grows.
        curve: as `Curve.summary` gives it. Shaded are the intervals over the rows.
    """
    first = next(iter(curve["models"].values()))[0]
    scores = [score for score in ("accuracy", "loss") if score in first]
    figure = Figure(
        figsize=(6.0, 0.9 + 2.5 * len(scores) + 0.22 * len(curve["models"])), dpi=100, layout="constrained"
    )
    panels = figure.subplots(len(scores), 1, sharex=True, squeeze=False)[:, 0]
    for score, panel in zip(scores, panels, strict=True):
        _draw(panel, curve, score)
    panels[-1].set_xlabel(f"{name}: {curve['unit']}")
    handles, names = panels[0].get_legend_handles_labels()
    legend = figure.legend(handles, names, loc="outside lower center", ncols=1, frameon=False, fontsize=9)
    for text in legend.get_texts():
        text.set_parse_math(False)
    content = io.BytesIO()
    FigureCanvasAgg(figure).print_png(content)
    return content.getvalue()


def _draw(panel: Axes, curve: Mapping[str, Any], score: str) -> None:
    for index, (name, points) in enumerate(curve["models"].items()):
        colour = _COLOURS[index % len(_COLOURS)]
        look = {"color": colour, "marker": _MARKS[index % len(_MARKS)], "linestyle": _LINES[index % len(_LINES)]}
        panel.plot(curve["sizes"], [one[score] for one in points], label=name, markersize=5, **look)
        if f"{score}_low" in points[0]:
            low, high = ([one[f"{score}_{end}"] for one in points] for end in ("low", "high"))
            panel.fill_between(curve["sizes"], low, high, color=colour, alpha=0.12, linewidth=0)
    panel.set_ylabel(score)
    panel.spines[["top", "right"]].set_visible(False)
    panel.grid(color="#e6e6e6", linewidth=0.7)
    panel.set_axisbelow(True)
