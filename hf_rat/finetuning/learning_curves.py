"""The learning curves of a run, or of several in one picture, as a PNG."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

FILE_NAME = "learning_curves.png"
_Log = Mapping[str, Any]


def draw_learning_curves(path: Path, histories: Mapping[str, Sequence[_Log]], metric: str) -> bool:
    """Draw the training loss with its parts, and what was scored during training, against optimizer steps.

    Args:
        path: where the picture goes.
        histories: name of a run -> the Trainer's log_history, one dict per log.
        metric: name of the score, without "eval_".

    Returns:
        Whether there was something to draw; without a logged loss nothing is written.
    """
    # The loss and its parts share a unit; a score, and the loss of an evaluation (the task's alone), have their own.
    panels = [(f"eval_{metric}", metric.replace("_", " ")), ("eval_loss", "evaluation loss (task loss alone)")]
    used = [
        (key, label)
        for key, label in panels
        if any(key in log and "step" in log for h in histories.values() for log in h)
    ]
    if not any("loss" in log for history in histories.values() for log in history):
        return False
    from matplotlib.figure import Figure  # takes half a second, and only a finished run needs it

    figure = Figure(figsize=(5.0 * (1 + len(used)), 4.0), dpi=100, layout="constrained")
    axes = figure.subplots(1, 1 + len(used), squeeze=False)[0]
    for number, (name, history) in enumerate(histories.items()):
        color = f"C{number}"
        for key, style in zip(_losses(history), ("-", "--", ":", "-.", (0, (1, 4)), (0, (6, 4))), strict=False):
            part = key.removeprefix("loss_").replace("_", " ")
            label = f"{name}: {'the sum' if key == 'loss' else part}"
            axes[0].plot(
                *_points(history, key), linestyle=style, color=color, label=label, marker=_marker(history, key)
            )
        for axis, (key, _) in zip(axes[1:], used, strict=True):
            axis.plot(*_points(history, key), color=color, label=name, marker="o", markersize=3)
    for axis, label in zip(axes, ("training loss", *(label for _, label in used)), strict=True):
        axis.set_xlabel("optimizer steps")
        axis.set_title(label, fontsize="medium")
        axis.grid(alpha=0.3)
        axis.legend(fontsize="small")
    figure.savefig(path)
    return True


def _losses(history: Sequence[_Log]) -> list[str]:
    """ "loss" and its parts, if it has more than one."""
    parts = sorted({key for log in history for key in log if key.startswith("loss_")})
    return ["loss", *(parts if len(parts) > 1 else [])]


def _points(history: Sequence[_Log], key: str) -> tuple[list[float], list[float]]:
    """Steps and values. At the end of a run other splits may be scored under one name: the first of a step counts."""
    found: dict[float, float] = {}
    for log in history:
        if key in log:
            found.setdefault(log["step"], log[key])
    return list(found), list(found.values())


def _marker(history: Sequence[_Log], key: str) -> str:
    """A lone point has no line."""
    return "o" if sum(key in log for log in history) == 1 else ""
