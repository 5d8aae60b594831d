"""Two more rows that a gain has to beat: plain training for as much time, and plain training for as long as it helps.

The first has the epochs of plain times the measured ratio of mean training times, that of the dearest method to that
of plain, a mean over cells; controls.json in the folder of the comparison keeps it, so that later runs are of one row.
The second has the epochs, of four, that are best on held-back training rows: trials, which its search.json tells.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from statistics import geometric_mean, mean
from typing import Any

from hf_rat.data.whole_files import write_json
from hf_rat.experiments.experiment import Cell, Experiment, Setting
from hf_rat.experiments.held_back import given
from hf_rat.experiments.method import Method
from hf_rat.experiments.pool import Pool
from hf_rat.experiments.run import Run
from hf_rat.experiments.search import search

FACTORS = (0.25, 0.5, 1, 2)  # of the given epochs
Records = Mapping[Run, dict[str, Any]]


def controls(experiment: Experiment, pool: Pool, records: Records) -> tuple[Experiment, dict[Run, dict[str, Any]]]:
    """Make the trials and the runs of both controls.

    Args:
        experiment: whose; one of its methods is plain, and it has values in place of ranges.
        pool: makes the runs.
        records: of its runs.

    Returns:
        An experiment with the controls alone; and the record of every run and trial. Without a method that takes
        longer than plain there is no control for time.

    Raises:
        ValueError: plain has not finished in some cell.
    """
    plain = experiment.plain
    assert plain is not None, "require_choosing has seen to it"
    lengths = {cell: _length(experiment, plain, cell, records) for cell in experiment.cells}
    dearest, ratio = _dearest(experiment, plain, records)
    made: dict[Run, dict[str, Any]] = {}
    rows: tuple[Method, ...] = ()
    chosen: dict[tuple[Cell, Method], Setting] = {}
    if ratio > 1:
        given_lengths = set(lengths.values())
        figures = f"{ratio:.2f} x the steps"
        if len(given_lengths) == 1:
            flag, length = next(iter(given_lengths))
            figures = f"{_text(flag, length * ratio)} {_unit(flag)}, {ratio:.2f} x {_text(flag, length)}"
        time = Method(plain.entry, f"plain for the time of {dearest.shown} ({figures})")
        rows += (time,)
        for cell, (flag, length) in lengths.items():
            chosen[cell, time] = _with(experiment.setting(plain, cell), flag, _text(flag, length * ratio))
    epochs = Method(plain.entry, "plain, epochs chosen on held-back rows")
    ranged = {}
    for cell, (flag, length) in lengths.items():
        texts = dict.fromkeys(_text(flag, factor * length) for factor in FACTORS)  # few steps may round to the same
        ranged[cell, epochs] = _with(experiment.setting(plain, cell), flag, f"{{{', '.join(texts)}}}")
    own = replace(experiment, methods=(epochs,), chosen=ranged)
    searched, made = search(own, pool, len(FACTORS))
    rows += (epochs,)
    both = replace(experiment, methods=rows, chosen=chosen | dict(searched.chosen or {}))
    return both, made | pool.make_missing(both.plan())


def _length(experiment: Experiment, plain: Method, cell: Cell, records: Records) -> tuple[str, float]:
    """The flag that says how long plain is trained in a cell, and its value."""
    for seed in experiment.seeds:
        run = experiment.run(plain, cell, seed)
        record = records.get(run)
        if record is not None and record["finished"]:
            steps, epochs = (given(run.command, flag) for flag in ("max_steps", "num_train_epochs"))
            if steps is not None and int(steps) > 0:
                return "max_steps", float(steps)
            return "num_train_epochs", float(record["results"]["epoch"] if epochs is None else epochs)
    raise ValueError(f"--controls: {plain.shown} has not finished{f' on {cell.shown}' if cell.shown else ''}")


def _dearest(experiment: Experiment, plain: Method, records: Records) -> tuple[Method, float]:
    """The method that takes the most time, and how many times that of plain."""
    seconds: dict[tuple[Method, tuple[str | None, str | None]], list[float]] = {}
    for run, record in records.items():
        if record["finished"] and record["results"].get("train_runtime"):
            seconds.setdefault((run.method, run.cell), []).append(record["results"]["train_runtime"])
    ratios: dict[Method, list[float]] = {}
    for (method, cell), own in seconds.items():
        if (plain, cell) in seconds:
            ratios.setdefault(method, []).append(mean(own) / mean(seconds[plain, cell]))
    costs = {method: geometric_mean(own) for method, own in ratios.items()}
    dearest = max(costs, key=lambda method: costs[method])
    return dearest, _kept(experiment.output / "controls.json", dearest, costs[dearest])


def _kept(path: Path, dearest: Method, measured: float) -> float:
    """The ratio that was measured when a control for the same method was first made, or this one."""
    try:
        told = json.loads(path.read_text(encoding="utf-8"))
        if told["dearest"] == dearest.shown:
            return float(told["ratio"])
    except FileNotFoundError:
        pass
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{path} cannot be read ({error}); remove it to measure the time anew") from None
    write_json(path, {"dearest": dearest.shown, "ratio": measured})
    return measured


def _with(setting: Setting, flag: str, text: str) -> Setting:
    return Setting((*setting.words, f"--{flag}", text), setting.expression)


def _text(flag: str, length: float) -> str:
    return str(max(1, round(length))) if flag == "max_steps" else f"{length:.4g}"


def _unit(flag: str) -> str:
    return "steps" if flag == "max_steps" else "epochs"
