"""The picture of a curve of robustness: accuracy and loss of several models against what grows."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from hf_rat.analysis.looks import look, name_below, png, tidy


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
    name_below(figure, panels[0])
    return png(figure)


def _draw(panel: Axes, curve: Mapping[str, Any], score: str) -> None:
    for index, (name, points) in enumerate(curve["models"].items()):
        own = look(index)
        panel.plot(curve["sizes"], [one[score] for one in points], label=name, **own)
        if f"{score}_low" in points[0]:
            low, high = ([one[f"{score}_{end}"] for one in points] for end in ("low", "high"))
            panel.fill_between(curve["sizes"], low, high, color=own["color"], alpha=0.12, linewidth=0)
    panel.set_ylabel(score)
    tidy(panel)
