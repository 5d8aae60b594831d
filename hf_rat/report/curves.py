"""Learning curves, from what the Trainer logged: the training loss, its components, and what was scored on the way."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from hf_rat.experiments.records import metric_of
from hf_rat.report.plots import Look, Plot, Sketch, drawn

_STEPS = "optimizer steps"
_NO_SCORES = ("runtime", "samples", "steps_per_second", "model_preparation_time")
_History = Sequence[Mapping[str, Any]]


def learning_curves(histories: Mapping[str, Sequence[_History]], looks: Mapping[str, Look]) -> list[Plot]:
    """A plot for each thing that a run logged: the sum of the losses, each of them, the validation loss, each score.

    Args:
        histories: method, or name of a run -> the log_history of each of its seeds.
        looks: the same names -> how their lines are drawn.
    """
    keys = dict.fromkeys(_known(log for runs in histories.values() for history in runs for log in history))
    plots = []
    for key in sorted(keys, key=_rank):
        sketches = [
            Sketch(name, looks[name], [_points(one, key) for one in runs], dots=False, faint=len(runs) > 1)
            for name, runs in histories.items()
        ]
        title, unit = _called(key)
        plot = drawn(title, (_STEPS, unit), sketches)
        if plot is not None:
            plots.append(plot)
    return plots


def _known(logs: Iterable[Mapping[str, Any]]) -> Iterable[str]:
    for log in logs:
        for key in log:
            bare = key.removeprefix("eval_")
            if (
                key == "loss"
                or key.startswith(("loss_", "gap_", "reg_epsilon"))
                or (bare != key and not bare.startswith(_NO_SCORES))
            ):
                yield key


def _rank(key: str) -> tuple[int, str]:
    """The loss first, then its components, then what evaluation found."""
    kinds = (key == "loss", key == "loss_task", key.startswith("loss_"), key == "eval_loss", key.startswith("eval_"))
    return next((at for at, found in enumerate(kinds) if found), len(kinds)), key


def _called(key: str) -> tuple[str, str]:
    """Title and unit."""
    if key == "loss":
        return "Training loss, the sum of its components", "loss"
    if key.startswith("loss_"):
        return f"Component: {key.removeprefix('loss_').replace('_', ' ')}", "loss"
    if key.startswith("gap_"):
        name = key.removeprefix("gap_").replace("_", " ")
        return f"Dropout's gap: {name}", name
    if key.startswith("reg_epsilon"):
        return key.removeprefix("reg_").replace("_", " ").capitalize(), "epsilon"
    metric, suffix = metric_of(key)
    split = "training rows" if suffix == "train" else f"validation split {suffix}".rstrip()
    if metric == "loss":
        return f"Loss on the {split}, the task's alone", "loss"
    return f"{metric.replace('_', ' ').capitalize()} on the {split}", metric.replace("_", " ")


def _points(history: _History, key: str) -> list[tuple[float, float]]:
    """Steps and values. At the end of a run other splits may be scored under one name: the first of a step counts."""
    found: dict[float, float] = {}
    for log in history:
        if isinstance(log.get(key), (int, float)) and isinstance(log.get("step"), (int, float)):
            found.setdefault(log["step"], log[key])
    return list(found.items())
