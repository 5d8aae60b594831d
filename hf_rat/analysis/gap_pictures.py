"""Pictures of calibration, and of dropout's gap."""

from __future__ import annotations

from collections.abc import Mapping

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from hf_rat.analysis.calibration import Calibration, Reliability
from hf_rat.analysis.dropout_gap import DropoutGap
from hf_rat.analysis.looks import look, name_below, png, tidy


def reliability_diagram(found: Mapping[str, Calibration]) -> bytes:
    """PNG, 600 pixels wide: accuracy against confidence, bin by bin, without and with the temperature.

    Below the diagonal a model is surer than it is right. The panel beneath counts the rows of each bin.

    Args:
        found: name of a model -> its calibration.
    """
    figure = Figure(figsize=(6.0, 5.6 + 0.22 * len(found)), dpi=100, layout="constrained")
    panels = figure.subplots(2, 2, sharex=True, sharey="row", height_ratios=[3, 1])
    for column, when in enumerate(("before", "after")):
        diagram, counts = panels[:, column]
        diagram.plot([0, 1], [0, 1], color="#999999", linewidth=1, linestyle=(0, (1, 2)))
        for index, (name, one) in enumerate(found.items()):
            _draw(diagram, counts, index, name, getattr(one, when))
        diagram.set_title("without temperature" if when == "before" else "with temperature", fontsize=10)
        counts.set_xlabel("confidence")
        diagram.set_aspect("equal")
        tidy(diagram)
        tidy(counts)
    panels[0, 0].set_ylabel("accuracy")
    panels[1, 0].set_ylabel("share of rows")
    name_below(figure, panels[0, 0])
    return png(figure)


def _draw(diagram: Axes, counts: Axes, index: int, name: str, one: Reliability) -> None:
    rows = sum(part.rows for part in one.bins)
    filled = [part for part in one.bins if part.rows]
    diagram.plot([part.confidence for part in filled], [part.accuracy for part in filled], label=name, **look(index))
    middles = [(part.low + part.high) / 2 for part in one.bins]
    counts.plot(middles, [part.rows / rows for part in one.bins], **{**look(index), "markersize": 3})


def picture_of_gap(found: Mapping[str, DropoutGap]) -> bytes:
    """PNG, 600 pixels wide: each score of the whole model, of passes with dropout and of their average.

    Args:
        found: name of a model -> its gap. The bar at one pass is a standard deviation over the masks, to both sides.
    """
    scores = list(next(iter(found.values())).whole)
    figure = Figure(figsize=(6.0, 0.9 + 2.5 * len(scores) + 0.22 * len(found)), dpi=100, layout="constrained")
    panels = figure.subplots(len(scores), 1, sharex=True, squeeze=False)[:, 0]
    places = ("no dropout", "one pass", f"{next(iter(found.values())).masks} passes averaged")
    for score, panel in zip(scores, panels, strict=True):
        for index, (name, one) in enumerate(found.items()):
            aside = 0.06 * (index - (len(found) - 1) / 2)
            values = [one.whole[score], one.one_pass[score], one.averaged[score]]
            bars = [0.0, one.one_pass_deviation[score], 0.0]
            panel.errorbar([aside + x for x in range(3)], values, bars, label=name, capsize=3, **look(index))
        panel.set_ylabel(score)
        panel.set_xticks(range(3), places)
        tidy(panel)
    name_below(figure, panels[0])
    return png(figure)
