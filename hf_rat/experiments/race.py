"""A race before a comparison: all methods on few cells and seeds, the lower half dropped, and again with more.

Round r takes the first 2^r cells and r + 1 seeds, which are none of the comparison's, on held-back training rows. What
counts is the mean over cells of the gain over the baseline with the same seed, in standard deviations: that of a cell
is over seeds, pooled over methods, since two or three seeds of one method tell next to nothing of it. Mean ranks would
count a gain of nothing as much as a large one.

The runs lie in race/ in the folder of a method, the log in race.json and race.md in that of the comparison.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import islice
from math import copysign, sqrt
from statistics import mean, variance
from typing import Any

from hf_rat.data.whole_files import write_json
from hf_rat.experiments.choosing import extent
from hf_rat.experiments.experiment import Cell, Experiment
from hf_rat.experiments.held_back import drop_weights, fresh_seeds, on_held_back
from hf_rat.experiments.method import Method
from hf_rat.experiments.pool import Pool
from hf_rat.experiments.run import Run
from hf_rat.experiments.scores import score_of, sign_of

_CRITERION = (
    "mean over cells of the paired gain over the baseline on held-back training rows, in standard deviations over "
    "seeds (pooled over the methods of a cell)"
)
Scores = Mapping[Cell, Mapping[Method, Sequence[float]]]


def race(experiment: Experiment, pool: Pool, keep: int) -> tuple[Experiment, dict[Run, dict[str, Any]]]:
    """Drop methods until few are left.

    Args:
        experiment: its baseline is never dropped.
        pool: makes the runs.
        keep: methods to keep beside the baseline.

    Returns:
        The experiment with the methods that are left, in their order; and the record of every run of the race.

    Raises:
        ValueError: the baseline, or every other method, failed.
    """
    baseline = experiment.reference
    left = [method for method in experiment.methods if method != baseline]
    if not 1 <= keep < len(left):
        raise ValueError(
            f"--race {keep}: it keeps 1 to {len(left) - 1} of the {len(left)} methods beside the baseline"
        )
    records: dict[Run, dict[str, Any]] = {}
    rounds: list[dict[str, Any]] = []
    while len(left) > keep:
        number = len(rounds) + 1
        cells, count = extent(experiment, number)
        seeds = tuple(islice(fresh_seeds(experiment), count))
        runs = {
            (cell, method): [_run(experiment, method, cell, seed) for seed in seeds]
            for cell in cells
            for method in (baseline, *left)
        }
        records |= pool.make_missing([run for own in runs.values() for run in own])
        scores, signs, failed = _scores(runs, records, experiment.score)
        if baseline in failed:
            logs = ", ".join(str(run.log) for run in failed[baseline])
            raise ValueError(f"--race: the baseline {baseline.shown} failed in round {number}, see {logs}")
        gains = gains_in_deviations(scores, baseline)
        places = sorted(gains, key=lambda method: -gains[method])
        kept = places[: max(keep, (len(left) + 1) // 2)]
        rounds.append(_told(number, cells, seeds, places, gains, scores, signs, failed, kept))
        left = [method for method in left if method in kept]
        _write(experiment, keep, rounds)
        if not left:
            logs = ", ".join(str(run.log) for runs in failed.values() for run in runs)
            raise ValueError(f"--race: every method but the baseline failed in round {number}, see {logs}")
    stays = {baseline, *left}
    return replace(experiment, methods=tuple(m for m in experiment.methods if m in stays)), records


def gains_in_deviations(scores: Scores, baseline: Method) -> dict[Method, float]:
    """Method -> mean over cells of its gain over the baseline, in standard deviations.

    Args:
        scores: of each cell, method -> score of each seed, two or more, more being better.
        baseline: has none itself.
    """
    gains: dict[Method, list[float]] = {}
    for methods in scores.values():
        deviation = sqrt(mean(variance(values) for values in methods.values()))
        for method, values in methods.items():
            gain = mean(values) - mean(methods[baseline])
            # Where no seed makes a difference, any gain counts as one deviation.
            own = gain / deviation if deviation else copysign(1, gain) if gain else 0.0
            gains.setdefault(method, []).append(own)
    return {method: mean(own) for method, own in gains.items() if method != baseline}


def _run(experiment: Experiment, method: Method, cell: Cell, seed: int) -> Run:
    folder = cell.folder(experiment.output) / method.slug / "race" / f"held-back-{seed}"
    return on_held_back(experiment.run(method, cell, seed), folder)


def _scores(
    runs: Mapping[tuple[Cell, Method], Sequence[Run]], records: Mapping[Run, dict[str, Any]], asked: str | None
) -> tuple[Scores, dict[Cell, int], dict[Method, list[Run]]]:
    """What a round measured.

    Returns:
        The scores of the methods none of whose runs failed, times the sign that makes more of them better; that sign
        of each cell; and the runs that failed.
    """
    found: dict[Run, float] = {}
    signs: dict[Cell, int] = {}
    for (cell, _), own in runs.items():
        for run in own:
            scored = score_of(records[run], asked)
            if scored is not None:
                signs[cell] = sign_of(scored[0])
                found[run] = signs[cell] * scored[1]
                drop_weights(run.folder)
    failed: dict[Method, list[Run]] = {}
    for (_, method), own in runs.items():
        lost = [run for run in own if run not in found]
        if lost:
            failed.setdefault(method, []).extend(lost)
    scores: dict[Cell, dict[Method, list[float]]] = {}
    for (cell, method), own in runs.items():
        if method not in failed:
            scores.setdefault(cell, {})[method] = [found[run] for run in own]
    return scores, signs, failed


def _told(
    number: int,
    cells: Sequence[Cell],
    seeds: Sequence[int],
    places: Sequence[Method],
    gains: Mapping[Method, float],
    scores: Scores,
    signs: Mapping[Cell, int],
    failed: Mapping[Method, Sequence[Run]],
    kept: Sequence[Method],
) -> dict[str, Any]:
    """A round of the log."""
    rows: list[dict[str, Any]] = [
        {
            "method": method.shown,
            "gain": gains[method],
            "scores": {cell.shown: signs[cell] * mean(scores[cell][method]) for cell in cells},
            "dropped": method not in kept,
        }
        for method in places
    ]
    rows += [
        {"method": method.shown, "gain": None, "failed": [str(run.log) for run in runs], "dropped": True}
        for method, runs in failed.items()
    ]
    return {"round": number, "cells": [cell.shown for cell in cells], "seeds": list(seeds), "methods": rows}


def _write(experiment: Experiment, keep: int, rounds: Sequence[Mapping[str, Any]]) -> None:
    baseline = experiment.reference.shown
    told = {"baseline": baseline, "keep": keep, "criterion": _CRITERION, "rounds": rounds}
    write_json(experiment.output / "race.json", told)
    lines = ["# The race", "", f"Baseline: `{baseline}`. What counts is the {_CRITERION}.", ""]
    for one in rounds:
        where = f"{len(one['cells'])} cells ({'; '.join(one['cells'])})" if any(one["cells"]) else "one cell"
        lines += [f"## Round {one['round']}: {where}, seeds {', '.join(map(str, one['seeds']))}", ""]
        lines += ["| method | gain in deviations | |", "|---|---|---|"]
        for row in one["methods"]:
            gain = "failed" if row["gain"] is None else f"{row['gain']:+.2f}"
            lines.append(f"| `{row['method']}` | {gain} | {'dropped' if row['dropped'] else 'stays'} |")
        lines.append("")
    (experiment.output / "race.md").write_text("\n".join(lines), encoding="utf-8")
