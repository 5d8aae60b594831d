"""landscape.json: several models on the same axes, written after every row, and taken up again."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from hf_rat.analysis.directions import random_directions
from hf_rat.analysis.landscape import Row, area_below, axis, landscape_rows
from hf_rat.analysis.rows import Rows
from hf_rat.analysis.subject import Subject
from hf_rat.data.whole_files import write_json

_LEVELS = 8


@dataclass(frozen=True)
class Plan:
    """What is measured of every model.

    Args:
        radius: how far to go along each direction; 1 is as far as the weights are long.
        points: of an axis.
        dimensions: 1 or 2.
        seed: of the directions.
        rule: of their length, as in `random_directions`.
        biases: likewise.

    Raises:
        ValueError: a value that `axis` refuses, or the number of dimensions.
    """

    radius: float = 1.0
    points: int = 51
    dimensions: int = 2
    seed: int = 0
    rule: str = "filter"
    biases: str = "zero"

    def __post_init__(self) -> None:
        self.axes()
        if self.dimensions not in (1, 2):
            raise ValueError(f"dimensions={self.dimensions!r} is neither 1 nor 2")

    def axes(self) -> tuple[list[float], list[float]]:
        """xs and ys."""
        line = axis(self.radius, self.points)
        return line, line if self.dimensions == 2 else [0.0]


def measure(
    subjects: Sequence[Subject], plan: Plan, path: Path, levels: Sequence[float] | None, say: Callable[[str], Any]
) -> dict[str, Any]:
    """Measure the landscapes of several models, going on where a former run of the same plan has stopped.

    Args:
        subjects: the models, asked about the same rows.
        plan: the same for all of them.
        path: landscape.json. It is written after every row; its rows of the same models, texts and plan are kept.
        levels: losses at which contours are drawn and areas measured; None: eight, evenly in the logarithm, from the
            lowest loss of all models together to that which nine in ten points are below.
        say: told of every model that is done.

    Returns:
        The settings of the plan, "texts" (a hash), "xs", "ys", "levels", and under "models" for each name "weights" (a
        hash), "losses" and "accuracies", [j][i] at (xs[i], ys[j]), and "areas", below each level. A loss that is not
        finite is None.

    Raises:
        ValueError: the file is none of ours, or of another plan, or cannot be written.
    """
    xs, ys = plan.axes()
    found: dict[str, Any] = {**vars(plan), "texts": _hash_of_rows(subjects[0].rows), "xs": xs, "ys": ys, "models": {}}
    former = _former(path, found)
    for subject in subjects:
        weights, known = _hash_of_weights(subject.model), former.get(subject.name, {})
        blank: dict[str, Any] = {"weights": weights, "losses": [None] * len(ys), "accuracies": [None] * len(ys)}
        found["models"][subject.name] = known if known.get("weights") == weights else blank
    for subject in subjects:
        one = found["models"][subject.name]
        done = [number for number, row in enumerate(one["losses"]) if row is not None]
        if len(done) < len(ys):
            directions = random_directions(subject.model, plan.dimensions, plan.seed, plan.rule, plan.biases)
            batches = of_like_length(subject).encode()
            for row in landscape_rows(subject.model, batches, directions, xs, ys, done, say):
                _keep(one, row)
                _write(path, found)
            one["accuracies"] = None if None in one["accuracies"] else one["accuracies"]
        say(f"{subject.name}: {len(xs)} x {len(ys)} points" + (f", {len(done)} rows from before" if done else ""))
    found["levels"] = sorted(levels) if levels is not None else _levels(found["models"].values())
    for one in found["models"].values():
        grid = len(ys) > 1
        one["areas"] = [area_below(xs, ys, one["losses"], level) for level in found["levels"]] if grid else None
    return found


def of_like_length(subject: Subject) -> Subject:
    """The same with its rows in the order of their lengths in tokens, so that batches have little padding."""
    rows = subject.rows
    columns = [list(column) for column in zip(*rows.texts, strict=True)]
    ids = subject.tokenizer(*columns, truncation=True, max_length=subject.max_length)["input_ids"]
    order = sorted(range(len(rows)), key=lambda place: len(ids[place]))
    ordered = replace(
        rows,
        texts=tuple(rows.texts[place] for place in order),
        targets=tuple(rows.targets[place] for place in order),
        numbers=tuple(rows.numbers[place] for place in order),
    )
    return replace(subject, rows=ordered)


def _former(path: Path, found: Mapping[str, Any]) -> dict[str, Any]:
    """The models of a former run of the same plan."""
    if not path.exists():
        return {}
    try:
        told = json.loads(path.read_text(encoding="utf-8"))
        models = dict(told["models"])
        other = next((name for name in found if name != "models" and told[name] != found[name]), None)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ValueError(f"--output_dir: {path} is no landscape that could be gone on with; remove it") from error
    if other is not None:
        what = "other texts" if other == "texts" else f"{other} {_short(told[other])}, not {_short(found[other])}"
        raise ValueError(f"--output_dir: {path} is a landscape of {what}; give another folder, or remove the file")
    return models


def _short(value: Any) -> str:
    return f"of {len(value)} points" if isinstance(value, list) else str(value)


def _keep(one: dict[str, Any], row: Row) -> None:
    one["losses"][row.number] = [loss if math.isfinite(loss) else None for loss in row.losses]
    if row.accuracies is not None:
        one["accuracies"][row.number] = row.accuracies


def _write(path: Path, found: Mapping[str, Any]) -> None:
    try:
        write_json(path, found)
    except OSError as error:
        raise ValueError(f"--output_dir: {path} cannot be written ({error.strerror or error})") from error


def _levels(models: Any) -> list[float]:
    losses = np.array([loss for one in models for row in one["losses"] for loss in row if loss is not None])
    if len(losses) == 0:
        return []
    lowest, high = float(losses.min()), float(np.quantile(losses, 0.9))
    between = np.geomspace if 0 < lowest < high else np.linspace
    return sorted(set(between(lowest, high, _LEVELS + 1)[1:].tolist()))


def _hash_of_rows(rows: Rows) -> str:
    told = json.dumps([rows.texts, rows.targets], ensure_ascii=False)
    return hashlib.sha256(told.encode("utf-8", "surrogatepass")).hexdigest()[:16]


def _hash_of_weights(model: nn.Module) -> str:
    digest = hashlib.sha256()
    for name, weight in sorted(model.state_dict().items()):
        digest.update(name.encode())
        digest.update(weight.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()[:16]
