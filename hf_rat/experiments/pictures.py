"""Two pictures of a comparison: every seed with mean and interval, and the scores against what they cost."""

from __future__ import annotations

import io
import textwrap
import warnings
from collections.abc import Sequence

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from hf_rat.experiments.sentences import score_of
from hf_rat.experiments.verdict import Cell, Row, Verdict

DPI = 100
_ACROSS = 3  # panels side by side
_COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#6b6b6b", "#8c564b")
_MARKS = ("o", "s", "D", "^", "v", "P", "X")  # as many as have no divisor in common with the colours
_NAME, _LINES = 26, 3  # of a method's name: letters in a line, and lines


def picture_of_seeds(verdict: Verdict) -> bytes:
    """PNG: a panel for each cell, a row for each method: its seeds as dots, its mean as a line.

    The bar is the interval of the gain, drawn from the baseline's mean: it misses the dashed line where the gain is
    settled.
    """
    tallest = max(sum(1.2 + 0.4 * _name(row.method).count("\n") for row in cell.rows) for cell in verdict.cells)
    figure, panels = _panels(verdict, 5.6, 0.9 + 0.3 * tallest, 0.4)
    for cell, panel in zip(verdict.cells, panels, strict=True):
        _draw_seeds(panel, cell)
    baseline = _name(verdict.baseline).replace("\n", " ")
    note = f"dot: a seed; line: mean; bar: 95 % interval of the gain over {baseline} (dashed), for this very test set"
    figure.supxlabel("\n".join(textwrap.wrap(note, int(figure.get_figwidth() * 17))), fontsize=8, parse_math=False)
    return _png(figure)


def picture_of_cost(verdict: Verdict) -> bytes:
    """PNG: a panel for each cell, in it each method's mean score against its median seconds of training."""
    methods = list(dict.fromkeys(row.method for cell in verdict.cells for row in cell.rows))
    names = [_name(method) for method in methods]
    columns = min(len(methods), 2 * min(_ACROSS, len(verdict.cells)))
    lines = -(-len(methods) // columns) * max(1 + name.count("\n") for name in names)
    figure, panels = _panels(verdict, 5.0, 3.6, 0.2 + 0.19 * lines)
    looks = {m: (_COLOURS[i % len(_COLOURS)], _MARKS[i % len(_MARKS)]) for i, m in enumerate(methods)}
    for cell, panel in zip(verdict.cells, panels, strict=True):
        _draw_cost(panel, cell, looks)
    handles = [
        Line2D([], [], color=looks[method][0], marker=looks[method][1], linestyle="", label=name)
        for method, name in zip(methods, names, strict=True)
    ]
    legend = figure.legend(handles=handles, loc="outside lower center", ncols=columns, frameon=False, fontsize=8)
    for text in legend.get_texts():
        text.set_parse_math(False)
    return _png(figure)


def _panels(verdict: Verdict, wide: float, high: float, below: float) -> tuple[Figure, Sequence[Axes]]:
    """A figure with a panel for each cell, each so many inches wide and high, and room below."""
    side = min(_ACROSS, len(verdict.cells))
    deep = -(-len(verdict.cells) // side)
    figure = Figure(figsize=(side * wide, deep * high + below), dpi=DPI, layout="constrained")
    panels = figure.subplots(deep, side, squeeze=False).ravel().tolist()
    for panel in panels[len(verdict.cells) :]:
        panel.remove()
    for cell, panel in zip(verdict.cells, panels, strict=False):
        if cell.name:
            panel.set_title(textwrap.shorten(cell.name, 44, placeholder=" ..."), fontsize=10, parse_math=False)
        panel.spines[["top", "right"]].set_visible(False)
        panel.grid(color="#e6e6e6", linewidth=0.7)
        panel.set_axisbelow(True)
    return figure, panels[: len(verdict.cells)]


def _draw_seeds(panel: Axes, cell: Cell) -> None:
    baseline = cell.row(cell.baseline)
    centre = baseline.mean if baseline is not None else None
    for place, row in enumerate(cell.rows):
        colour = "#444444" if row.method == cell.baseline else _COLOURS[0]
        bar = interval_from_baseline(cell, row, centre)
        if bar is not None:
            panel.barh(place, bar[1] - bar[0], left=bar[0], height=0.42, color=colour, alpha=0.22)
        for number, value in enumerate(row.values.values()):
            aside = 0 if len(row.values) < 2 else 0.36 * (number / (len(row.values) - 1) - 0.5)
            panel.plot(cell.scale * value, place + aside, "o", markersize=4, color=colour, alpha=0.8)
        if row.mean is None:
            panel.text(
                0.5,
                place,
                "no finished run",
                transform=panel.get_yaxis_transform(),
                ha="center",
                va="center",
                fontsize=8,
            )
        else:
            panel.plot([cell.scale * row.mean] * 2, [place - 0.32, place + 0.32], color=colour, linewidth=2)
    values = [cell.scale * value for row in cell.rows for value in row.values.values()]
    spread = max(values) - min(values) or abs(values[0]) / 20 or 1.0
    panel.set_xlim(min(values) - 0.6 * spread, max(values) + 0.6 * spread)  # a bar of few seeds may run off
    if centre is not None:
        panel.axvline(cell.scale * centre, color="#444444", linestyle="--", linewidth=1)
    panel.set_ylim(len(cell.rows) - 0.4, -0.6)
    panel.set_yticks(range(len(cell.rows)), [_name(row.method) for row in cell.rows], fontsize=8, parse_math=False)
    panel.set_xlabel(score_of(cell).partition(",")[0].partition(";")[0], fontsize=9)


def _draw_cost(panel: Axes, cell: Cell, looks: dict[str, tuple[str, str]]) -> None:
    baseline = cell.row(cell.baseline)
    centre = baseline.mean if baseline is not None else None
    shown = [(row, row.seconds, row.mean) for row in cell.rows if row.mean is not None and row.seconds is not None]
    for row, seconds, mean in shown:
        colour, mark = looks[row.method]
        panel.plot([seconds], [cell.scale * mean], mark, color=colour, markersize=8, zorder=3)
        bar = interval_from_baseline(cell, row, centre)
        if bar is not None:
            panel.plot([seconds] * 2, bar, color=colour, linewidth=1.4, alpha=0.6)
    if not shown:
        panel.text(0.5, 0.5, "no run tells its training time", transform=panel.transAxes, ha="center")
        return
    means = [cell.scale * mean for _, _, mean in shown]
    spread = max(means) - min(means) or abs(means[0]) / 20 or 1.0
    panel.set_ylim(min(means) - 0.9 * spread, max(means) + 0.9 * spread)
    panel.set_xlim(0, 1.12 * max(seconds for _, seconds, _ in shown))
    if centre is not None:
        panel.axhline(cell.scale * centre, color="#444444", linestyle="--", linewidth=1)
    panel.set_xlabel("seconds of training, median of the seeds", fontsize=9)
    panel.set_ylabel("\n".join(textwrap.wrap(score_of(cell).partition(",")[0].partition(";")[0], 48)), fontsize=9)


def interval_from_baseline(cell: Cell, row: Row, centre: float | None) -> tuple[float, float] | None:
    """The interval of a method's gain, from the baseline's mean, as the panel shows scores."""
    if row.gain is None or row.gain.low is None or row.gain.high is None or centre is None:
        return None
    sign = -1 if cell.lower_is_better else 1
    low, high = sorted((centre + sign * row.gain.low, centre + sign * row.gain.high))
    return cell.scale * low, cell.scale * high


def _name(method: str) -> str:
    """A method's name on a few short lines."""
    lines = textwrap.wrap(method, _NAME) or [method]
    return "\n".join(
        lines if len(lines) <= _LINES else [*lines[: _LINES - 1], f"{lines[_LINES - 1][: _NAME - 4]} ..."]
    )


def _png(figure: Figure) -> bytes:
    stream = io.BytesIO()
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph .* missing from")  # a box stands for it
        FigureCanvasAgg(figure).print_png(stream)
    return stream.getvalue()
