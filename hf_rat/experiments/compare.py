"""`hf-rat compare`: methods x data sets x models x seeds, through the same code as the scripts.

What lies in the output folder afterwards, where [data set] and [model] are left out if every run has the same:

    [<data set>/][<model>/]<method>/seed-<n>/       what the run wrote, with its all_results.json and its predictions
    [<data set>/][<model>/]<method>/seed-<n>.log    what it printed
    [<data set>/][<model>/]<method>/seed-<n>.json   its record: command, versions, git state, seconds, results
    table.md, .csv, .tex, results.json, seeds.png, cost.png     the verdict, as `hf-rat verdict` tells it anew

Called again with the same output folder it keeps the runs that finished and redoes those that did not; a run that
fails does not stop the others.
"""

from __future__ import annotations

import errno
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

from filelock import FileLock, Timeout

from hf_rat.experiments.choosing import planned
from hf_rat.experiments.display import Display
from hf_rat.experiments.estimate import STEPS, Durations, duration
from hf_rat.experiments.experiment import Experiment
from hf_rat.experiments.pool import Pool
from hf_rat.experiments.run import Run, Runner, read_record

_Records = Mapping[Run, dict[str, Any]]


def compare(experiment: Experiment, command: str, runner: Runner) -> None:
    """Make the runs that are missing, then say what came out.

    Args:
        experiment: what is compared.
        command: the command line of the comparison itself, for the table.
        runner: makes the commands.

    Raises:
        ValueError: the folder holds other runs, is in use or cannot be written; or, after the table was written, some
            runs failed.
        KeyboardInterrupt: with a line that says what is kept.
    """
    output = experiment.output
    try:
        output.mkdir(parents=True, exist_ok=True)
        with FileLock(output / ".lock", timeout=0):
            made = _make_missing(experiment, runner)
            _tell(made.experiment, made.records, command)
    except Timeout:
        raise ValueError(f"--output_dir {output}: another hf-rat compare is at work there") from None
    except OSError as error:
        raise ValueError(_unwritten(experiment, error)) from error
    except KeyboardInterrupt:
        raise KeyboardInterrupt(f"interrupted: {_kept(experiment)}; to go on, give the same command again") from None
    report_failures({**made.others, **made.records})
    if made.trouble:
        raise ValueError(made.trouble)


class _Made(NamedTuple):
    """What was made.

    Args:
        experiment: with the methods and the values that were chosen, and with controls.
        records: of its runs.
        others: of the trials and the runs of a race.
        trouble: why there are no controls.
    """

    experiment: Experiment
    records: dict[Run, dict[str, Any]]
    others: dict[Run, dict[str, Any]]
    trouble: str = ""


def _make_missing(experiment: Experiment, runner: Runner) -> _Made:
    """The record of every run, after a race or a search, and before the controls, where they are asked for."""
    if experiment.trials is None and experiment.race is None:
        for run in experiment.plan():
            run.finished()  # a wrong folder is told before any run
    missing, kept = planned(experiment)
    durations = Durations()
    for run in experiment.plan():
        if run.record.exists() and (record := read_record(run.record))["finished"]:
            durations.learn(run, record)
    if missing:
        _announce(experiment, missing, kept, durations, runner)
    with Display(durations, experiment.jobs) as display, Pool(runner, experiment.jobs, display) as pool:
        display.expect(missing, kept)
        others: dict[Run, dict[str, Any]] = {}
        # What they need takes seconds to import.
        if experiment.race is not None:
            from hf_rat.experiments.race import race

            experiment, others = race(experiment, pool, experiment.race)
        if experiment.trials is not None:
            from hf_rat.experiments.search import search

            experiment, others = search(experiment, pool, experiment.trials)
        records = pool.make_missing(experiment.plan())
        if not experiment.controls:
            return _Made(experiment, records, others)
        from hf_rat.experiments.controls import controls

        try:
            rows, made = controls(experiment, pool, records)
        except ValueError as error:  # the runs are made, and told
            return _Made(experiment, records, others, str(error))
    own = {run: record for run, record in made.items() if run in rows.plan()}
    others |= {run: record for run, record in made.items() if run not in own}
    together = replace(experiment, methods=(*experiment.methods, *rows.methods))
    return _Made(together, records | own, others)


def _announce(experiment: Experiment, missing: Sequence[Run], kept: int, durations: Durations, runner: Runner) -> None:
    """Say how long the missing runs will take."""
    if any(durations.seconds(run) is None for run in missing):
        print(f"Timing {STEPS} steps of {experiment.reference.shown} ...", flush=True)
        with Pool(runner, experiment.jobs) as pool:
            durations.probe(experiment, missing, pool)
    total = durations.total(missing, experiment.jobs)
    time = "a time that is not known" if total is None else f"about {duration(total)}"
    at_once = f", {experiment.jobs} at a time" if experiment.jobs > 1 else ""
    before = f"; {kept} more are finished" if kept else ""
    print(f"{len(missing)} runs{at_once}: {time} ({durations.basis(missing)}){before}", flush=True)


def _kept(experiment: Experiment) -> str:
    runs = experiment.plan()
    finished = sum(bool(run.record.exists() and read_record(run.record)["finished"]) for run in runs)
    return f"{finished} of {len(runs)} runs are finished and kept in {experiment.output}"


def _unwritten(experiment: Experiment, error: OSError) -> str:
    """One line on an output that cannot be written."""
    output = experiment.output
    if error.errno not in (errno.ENOSPC, errno.EDQUOT):
        return f"--output_dir {output} cannot be written ({error.strerror or error})"
    return f"--output_dir {output}: {error.strerror}; {_kept(experiment)}; make room and give the same command again"


def _tell(experiment: Experiment, records: _Records, command: str) -> None:
    """Write what came out, and print it; nothing where no run has finished."""
    if not any(record["finished"] for record in records.values()):
        return
    from hf_rat.experiments.records import Record  # what they need takes seconds to import
    from hf_rat.experiments.telling import tell

    told = [
        Record(
            ", ".join(part for part in run.cell if part is not None),
            run.method.shown,
            run.seed,
            run.record,
            record,
            record.get("versions") or {},
        )
        for run, record in records.items()
    ]
    order = [method.shown for method in experiment.methods]
    told.sort(key=lambda record: order.index(record.method))
    tell(told, experiment.output, [command], experiment.reference.shown, experiment.score)


def report_failures(records: _Records) -> None:
    """Raise if runs failed: a line that has each method that never finished, and the logs of other failures.

    Raises:
        ValueError: with that line.
    """
    failed = [run for run, record in records.items() if not record["finished"]]
    if not failed:
        return
    groups: dict[Any, list[Run]] = {}
    for run in records:
        groups.setdefault((run.cell, run.method), []).append(run)
    parts = []
    for group in groups.values():
        broken = [run for run in group if run in failed]
        if broken == group and len(group) > 1:
            name = ", ".join(part for part in (*group[0].cell, group[0].method.shown) if part)
            parts.append(f"{name} with all {len(group)} seeds ({_why(group[0], records)})")
        else:
            parts += [f"{run.name} ({_why(run, records)})" for run in broken]
    raise ValueError(f"{len(failed)} of {len(records)} runs failed: {'; '.join(parts)}")


def _why(run: Run, records: _Records) -> str:
    return f"{run.reason(records[run])}; see {run.log}"
