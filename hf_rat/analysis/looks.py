"""How models are told apart in pictures: by colour, mark and line, so that none of the three alone has to."""

from __future__ import annotations

import io
import warnings
from typing import Any

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

_COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#6b6b6b", "#8c564b")
_MARKS = ("o", "s", "D", "^", "v", "P", "X")  # as many as have no divisor in common with the colours
_LINES = ("-", "--", "-.", ":")


def look(index: int) -> dict[str, Any]:
    """Keyword arguments of `plot` for the model of that number."""
    colour, mark, line = _COLOURS[index % 8], _MARKS[index % 7], _LINES[index % 4]
    return {"color": colour, "marker": mark, "linestyle": line, "markersize": 5}


def tidy(panel: Axes) -> None:
    """A light grid, and no frame above and on the right."""
    panel.spines[["top", "right"]].set_visible(False)
    panel.grid(color="#e6e6e6", linewidth=0.7)
    panel.set_axisbelow(True)


def name_below(figure: Figure, panel: Axes) -> None:
    """A legend of what a panel has, below the figure; names are not taken for formulas."""
    handles, names = panel.get_legend_handles_labels()
    legend = figure.legend(handles, names, loc="outside lower center", ncols=1, frameon=False, fontsize=9)
    for text in legend.get_texts():
        text.set_parse_math(False)


def png(figure: Figure) -> bytes:
    """The figure as a file."""
    content = io.BytesIO()
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph .* missing from")  # a box stands for it
        warnings.filterwarnings("ignore", message="No contour levels were found")  # a flat model has none
        FigureCanvasAgg(figure).print_png(content)
    return content.getvalue()
