"""`hf-rat compare`: methods x data sets x models x seeds, through the same code as the scripts.

What lies in the output folder afterwards, where [data set] and [model] are left out if every run has the same:

    [<data set>/][<model>/]<method>/seed-<n>/       what the run wrote, with its all_results.json and its predictions
    [<data set>/][<model>/]<method>/seed-<n>.log    what it printed
    [<data set>/][<model>/]<method>/seed-<n>.json   its record: command, versions, git state, seconds, results
    results.json, table.md                          mean, standard deviation and number of seeds of every score

Called again with the same output folder it keeps the runs that finished and redoes those that did not; a run that
fails does not stop the others.
"""

from __future__ import annotations

import errno
import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from statistics import mean, stdev
from typing import Any, NamedTuple

from filelock import FileLock, Timeout

from hf_rat.experiments.choosing import planned
from hf_rat.experiments.display import Display
from hf_rat.experiments.estimate import STEPS, Durations, duration
from hf_rat.experiments.experiment import Experiment
from hf_rat.experiments.method import Method
from hf_rat.experiments.pool import Pool
from hf_rat.experiments.provenance import versions
from hf_rat.experiments.run import Run, Runner, read_record, write_json

# Entries of all_results.json that begin so (the name of a split may follow) are no scores.
_NO_SCORES = re.compile(r"(eval|test)_(runtime|samples|steps_per_second|model_preparation_time)")
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
            tell(made.experiment, made.records, command)
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


def tell(experiment: Experiment, records: _Records, command: str) -> None:
    """Write what came out, and print it."""
    rows = [
        aggregate(method, [r for run, r in records.items() if run.method == method and r["finished"]])
        for method in experiment.methods
    ]
    write_json(experiment.output / "results.json", {"command": command, "versions": versions(), "methods": rows})
    text = table(rows, command)
    (experiment.output / "table.md").write_text(text, encoding="utf-8")
    print(text.split("\n\n")[0])


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


def aggregate(method: Method, records: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Mean and sample standard deviation of every validation and test score over a method's finished runs.

    A score that some of the runs lack is left out. The standard deviation of a single run is None.
    """
    results: list[dict[str, Any]] = [record["results"] for record in records]
    names = [
        name
        for name in (results[0] if results else {})
        if name.startswith(("eval_", "test_"))
        and not _NO_SCORES.match(name)
        and all(isinstance(result.get(name), (int, float)) for result in results)
    ]
    scores = {}
    for name in names:
        values = [float(result[name]) for result in results]
        scores[name] = {"mean": mean(values), "std": stdev(values) if len(values) > 1 else None, "values": values}
    return {
        "method": method.shown,
        "seeds": [record["seed"] for record in records],
        "scores": scores,
        "commands": [record["command"] for record in records],
    }


def table(rows: Sequence[dict[str, Any]], command: str) -> str:
    """The comparison as Markdown: a row for each method, a column for each score, then the exact commands."""
    names = list(dict.fromkeys(name for row in rows for name in row["scores"]))
    lines = [
        "| method | seeds | " + " | ".join(names) + " |" if names else "| method | seeds |",
        "|---" * (2 + len(names)) + "|",
    ]
    for row in rows:
        cells = [_cell(row["scores"].get(name)) for name in names]
        lines.append("| " + " | ".join([f"`{row['method']}`", str(len(row["seeds"])), *cells]) + " |")
    lines += ["", "Mean ± sample standard deviation over the seeds. Made by", "", "```bash", command, "```", ""]
    lines += ["which ran", "", "```bash", *(shown for row in rows for shown in row["commands"]), "```", ""]
    return "\n".join(lines)


def _cell(score: dict[str, Any] | None) -> str:
    if score is None:
        return "-"
    return f"{score['mean']:.4f}" + ("" if score["std"] is None else f" ± {score['std']:.4f}")
