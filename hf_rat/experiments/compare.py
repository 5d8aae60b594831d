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

import re
from collections.abc import Mapping, Sequence
from statistics import mean, stdev
from typing import Any

from filelock import FileLock, Timeout

from hf_rat.experiments.experiment import Experiment
from hf_rat.experiments.method import Method
from hf_rat.experiments.pool import Pool
from hf_rat.experiments.provenance import versions
from hf_rat.experiments.run import Run, Runner, write_json

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
        ValueError: the folder holds other runs or is in use; or, after the table was written, some runs failed.
        KeyboardInterrupt: with a line that says what is kept.
    """
    output = experiment.output
    output.mkdir(parents=True, exist_ok=True)
    try:
        with FileLock(output / ".lock", timeout=0):
            records = _make_missing(experiment, runner)
            tell(experiment, records, command)
    except Timeout:
        raise ValueError(f"--output_dir {output}: another hf-rat compare is at work there") from None
    _report_failures(records)


def _make_missing(experiment: Experiment, runner: Runner) -> dict[Run, dict[str, Any]]:
    """The record of every run."""
    runs = experiment.plan()
    kept = {run: run.finished() for run in runs}  # before any run, so that a wrong folder is told at once
    with Pool(runner, experiment.jobs) as pool:
        futures = {run: pool.submit(run) for run, record in kept.items() if record is None}
        records = {run: record or futures[run].result() for run, record in kept.items()}
    return records


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


def _report_failures(records: _Records) -> None:
    failed = [run for run, record in records.items() if not record["finished"]]
    if failed:
        logs = ", ".join(str(run.log) for run in failed)
        raise ValueError(f"{len(failed)} of {len(records)} runs failed, see {logs}")


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
        "method": method.entry,
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
