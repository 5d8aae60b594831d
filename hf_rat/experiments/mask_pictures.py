"""Two pictures of a study of masks: histograms of the accuracies of sub-networks, and the mean masks over time."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

_BINS = 40
_KINDS = {
    "random": ("random mask", "#0072b2"),
    "adversarial": ("worst mask of one image", "#d55e00"),
    "own": ("each image under its own worst mask", "#009e73"),
}


def picture_of_accuracies(study: Mapping[str, Any]) -> bytes:
    """PNG: how right sub-networks are, a histogram for each kind; the dashed line is the whole network."""
    figure = Figure(figsize=(6.4, 3.6), dpi=100, layout="constrained")
    panel = figure.subplots()
    values = [*(value for name in _KINDS for value in study[name]), study["accuracy"]]
    low, high = min(values), max(values)
    bins = np.linspace(low, high if high > low else low + 1e-3, _BINS + 1)
    for name, (label, colour) in _KINDS.items():
        weights = np.full(len(study[name]), 1 / max(1, len(study[name])))
        panel.hist(study[name], bins=bins.tolist(), weights=weights, color=colour, alpha=0.6, label=label)
    panel.axvline(study["accuracy"], color="#333333", linestyle="--", linewidth=1, label="the whole network")
    panel.set_xlabel("accuracy")
    panel.set_ylabel("share of sub-networks")
    panel.spines[["top", "right"]].set_visible(False)
    panel.legend(frameon=False, fontsize=8)
    return _png(figure)


def picture_of_mean_masks(masks: Mapping[str, Sequence[float]]) -> bytes:
    """PNG: a line of cells for each checkpoint, the first on top; dark is a unit that the worst masks switch off."""
    figure = Figure(figsize=(7.2, 2.2 + 0.2 * len(masks)), dpi=100, layout="constrained")
    panel = figure.subplots()
    image = panel.imshow(np.array(list(masks.values())), cmap="cividis", aspect="auto", interpolation="nearest")
    panel.set_yticks(range(len(masks)), list(masks), fontsize=7)
    panel.set_xlabel("unit")
    figure.colorbar(image, ax=panel, label="mean of the worst masks")
    return _png(figure)


def _png(figure: Figure) -> bytes:
    content = io.BytesIO()
    FigureCanvasAgg(figure).print_png(content)
    return content.getvalue()
