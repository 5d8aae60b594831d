"""What a comparison does beside its runs, a race or a search before and controls after: checks, and how much it takes.

Nothing here imports what those need: a command line is checked at once.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from pathlib import Path

from hf_rat.experiments.experiment import Cell, Experiment
from hf_rat.experiments.held_back import require_training_rows
from hf_rat.experiments.run import Run, read_record
from hf_rat.experiments.settings import Space
from hf_rat.experiments.words import value_of


def require_choosing(experiment: Experiment) -> None:
    """Refuse a search, a race or controls that cannot be made.

    Raises:
        ValueError: one line that names the flag.
    """
    ranges = {
        one.name: one.shown
        for method in experiment.methods
        for cell in experiment.cells
        for one in Space.of(experiment.setting(method, cell), f"--methods {method.entry!r}").ranges
    }
    first = next((f"{text} of {name}" for name, text in ranges.items()), None)
    if first is not None and experiment.trials is None:
        raise ValueError(f"the range {first} needs --trials N: how many settings of each method are tried")
    if first is None and experiment.trials is not None:
        raise ValueError(
            f"--trials {experiment.trials}: nothing has a range to choose from, as in 'rat(epsilon={{0.01..1 log}})'"
        )
    if experiment.race is not None:
        others = len(experiment.methods) - 1
        if first is not None:
            raise ValueError(f"--race takes no ranges, and there is {first}: search among the methods that it leaves")
        if not 1 <= experiment.race < others:
            raise ValueError(
                f"--race {experiment.race}: there are {others} methods beside the baseline, and it keeps at least one "
                "and drops at least one of them"
            )
    if experiment.controls and experiment.plain is None:
        raise ValueError("--controls gives plain other epochs, and --methods has no plain: add it")
    for flag in ("trials", "race", "controls"):
        if getattr(experiment, flag):
            require_training_rows(experiment, f"--{flag}")


def sampled(experiment: Experiment) -> Experiment:
    """The same with some value in place of each range."""
    return dataclasses.replace(
        experiment,
        chosen={
            (cell, method): space.setting([one.samples()[0] for one in space.ranges])
            for cell in experiment.cells
            for method in experiment.methods
            for space in [Space.of(experiment.setting(method, cell), f"--methods {method.entry!r}")]
        },
    )


def require_regularizers(experiment: Experiment) -> None:
    """Refuse a method that no run could have, before any other one is made.

    Raises:
        ValueError: one line that names it.
    """
    from hf_rat.regularizers.expressions import parse  # which imports torch

    for run in sampled(experiment).plan():
        if not any(word.startswith("--reg_") for word in run.command):  # those may mend it
            try:
                parse(value_of(run.command, "reg") or "plain")
            except ValueError as error:
                raise ValueError(f"--methods {run.method.entry!r}: {error}") from None


def extent(experiment: Experiment, number: int) -> tuple[tuple[Cell, ...], int]:
    """The cells of a round of the race, the first being 1, and its number of seeds."""
    return experiment.cells[: 2**number], number + 1


def planned(experiment: Experiment) -> tuple[list[Run], int]:
    """Runs that take as long as those that are still to be made, and how many are finished.

    What a race drops and what a search chooses is not known before: others stand for them.
    """
    left, kept = [], 0
    for run, folder, pattern, count in _groups(sampled(experiment)):
        done = min(count, sum(read_record(path)["finished"] for path in folder.glob(pattern)))
        left += [run] * (count - done)
        kept += done
    return left, kept


def _groups(experiment: Experiment) -> Iterator[tuple[Run, Path, str, int]]:
    """Stand-in, folder and pattern of the records that it stands for, and how many there will be."""
    baseline = experiment.reference
    others = [method for method in experiment.methods if method != baseline]
    seeds = len(experiment.seeds)
    raced: dict[tuple[Cell, str], int] = {}
    number = 1
    while experiment.race is not None and len(others) > experiment.race:
        cells, count = extent(experiment, number)
        raced |= {(cell, method.entry): count for cell in cells for method in (baseline, *others)}
        others, number = others[: max(experiment.race, (len(others) + 1) // 2)], number + 1
    for method in experiment.methods:
        for cell in experiment.cells:
            run = experiment.run(method, cell, experiment.seeds[0])
            folder = run.folder.parent
            yield run, folder, "race/held-back-*.json", raced.get((cell, method.entry), 0)
            yield run, folder, "trials/trial-*.json", experiment.trials or 0
            yield run, folder, "seed-*.json", seeds if method in (baseline, *others) else 0
            if experiment.controls and method == experiment.plain:
                yield run, folder.parent, "plain-for-the-time-of-*/seed-*.json", seeds
                yield run, folder.parent, "plain-epochs-chosen-*/seed-*.json", seeds
                yield run, folder.parent, "plain-epochs-chosen-*/trials/trial-*.json", 4
