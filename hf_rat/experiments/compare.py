"""`hf-rat compare`: methods x seeds on one task, through the same code as the scripts.

    hf-rat compare --methods plain rat "rat(epsilon=0.5) --learning_rate 2e-5" --seeds 1 2 3 --output_dir out/rte \
        -- glue --task_name rte --model_name_or_path some/model --num_train_epochs 3

What follows ``--`` is the `hf-rat` command that every run makes (default: ``glue``, the built-in example); each run
adds ``--reg METHOD --seed N --output_dir OUTPUT/<method>/seed-<n>``, and the flags that its method carries. Every run
is a process of its own. What lies in OUTPUT afterwards:

    <method>/seed-<n>/       what the run wrote, with its all_results.json
    <method>/seed-<n>.log    what it printed
    <method>/seed-<n>.json   its exact command, whether it finished, and its results
    results.json, table.md   mean, standard deviation and number of seeds of every evaluation metric

Called again with the same output folder it skips the runs that finished and redoes those that did not; a run that
fails does not stop the others.
"""

from __future__ import annotations

import hashlib
import json
import os
import platform
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from statistics import mean, stdev
from typing import Any

Runner = Callable[[Sequence[str], Path], int]

# Entries of all_results.json that begin so (the name of a split may follow) are no scores.
_NO_SCORES = re.compile(r"(eval|test)_(runtime|samples|steps_per_second|model_preparation_time)")


@dataclass(frozen=True)
class Method:
    """One row of the comparison: a regularizer, with flags of its own where it needs other ones than the rest.

    Args:
        entry: an expression for ``--reg``, optionally followed by flags: ``"rat(epsilon=0.5) --learning_rate 2e-5"``.
    """

    entry: str

    @property
    def expression(self) -> str:
        return self._halves[0].strip()

    @property
    def flags(self) -> list[str]:
        try:
            return shlex.split(self._halves[1])
        except ValueError as error:
            raise ValueError(f"--methods: {self.entry!r} cannot be read ({error})") from None

    @property
    def slug(self) -> str:
        """A folder name; the end of a long one becomes a digest."""
        slug = re.sub(r"[^A-Za-z0-9.]+", "-", self.entry).strip("-")
        return slug if len(slug) <= 80 else f"{slug[:71]}-{hashlib.sha256(self.entry.encode()).hexdigest()[:8]}"

    @property
    def _halves(self) -> tuple[str, str]:
        expression, dashes, flags = self.entry.partition(" --")
        return expression, f"--{flags}" if dashes else ""


@dataclass(frozen=True)
class Run:
    """One training run and where its traces lie."""

    method: Method
    seed: int
    folder: Path
    command: tuple[str, ...]

    @property
    def record(self) -> Path:
        return self.folder.with_name(f"{self.folder.name}.json")

    @property
    def log(self) -> Path:
        return self.folder.with_name(f"{self.folder.name}.log")

    @property
    def shown(self) -> str:
        """The command as one types it."""
        return shlex.join(["hf-rat", *self.command])

    def finished(self) -> dict[str, Any] | None:
        """The record of this run if it has finished, else None.

        Raises:
            ValueError: the folder holds a run that another command made, or something that is no run of ours.
        """
        if not self.record.exists():
            if self.folder.exists() and any(self.folder.iterdir()):
                raise ValueError(f"{self.folder} is not empty and holds no run of compare; give another --output_dir")
            return None
        record = json.loads(self.record.read_text(encoding="utf-8"))
        if shlex.split(record["command"])[:-2] != shlex.split(self.shown)[:-2]:  # all but the folder, which may move
            raise ValueError(
                f"{self.record} was made by another command ({record['command']}); "
                "give another --output_dir or remove that run"
            )
        return record if record["finished"] else None

    def make(self, runner: Runner) -> dict[str, Any]:
        """Run it, from the start: what an interrupted attempt has left is removed."""
        record = {"method": self.method.entry, "seed": self.seed, "command": self.shown, "finished": False}
        self.folder.parent.mkdir(parents=True, exist_ok=True)
        if self.folder.exists():
            shutil.rmtree(self.folder)
        write_json(self.record, record)
        code = runner(self.command, self.log)
        results = self.folder / "all_results.json"
        if code == 0 and results.exists():
            record |= {"finished": True, "results": json.loads(results.read_text(encoding="utf-8"))}
            write_json(self.record, record)
        return record


def write_json(path: Path, value: Any) -> None:
    """Write a file that is, at any moment, whole: an interruption leaves the former one."""
    partial = path.with_name(f"{path.name}.partial")
    partial.write_text(json.dumps(value, indent=2) + "\n", encoding="utf-8")
    os.replace(partial, path)


def run_process(command: Sequence[str], log: Path) -> int:
    """Run ``hf-rat COMMAND`` in a process of its own, what it prints in `log`; returns its exit status."""
    with log.open("w", encoding="utf-8") as stream:
        process = [sys.executable, "-m", "hf_rat.cli.main", *command]
        return subprocess.run(process, stdout=stream, stderr=subprocess.STDOUT, check=False).returncode


def plan(methods: Sequence[Method], seeds: Sequence[int], output: Path, base: Sequence[str]) -> list[Run]:
    """Every run of the comparison, seed by seed, so that an early stop leaves whole rounds."""
    runs = []
    for seed in seeds:
        for method in methods:
            folder = output / method.slug / f"seed-{seed}"
            own = ["--reg", method.expression, "--seed", str(seed), "--output_dir", str(folder)]
            runs.append(Run(method, seed, folder, (*base, *method.flags, *own)))
    return runs


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


def compare(
    methods: Sequence[Method],
    seeds: Sequence[int],
    output: Path,
    base: Sequence[str],
    command: str,
    runner: Runner = run_process,
) -> None:
    """Make the runs that are missing, then write the table.

    Args:
        methods, seeds: rows, and what each is repeated over.
        output: folder of the runs and the table.
        base: the `hf-rat` command, without --reg, --seed and --output_dir.
        command: the command line of the comparison itself, for the table.
        runner: (command, log file) -> exit status.

    Raises:
        ValueError: the folder holds other runs; or, after the table was written, some runs failed.
    """
    runs = plan(methods, seeds, output, base)
    records = {run: run.finished() for run in runs}  # before any run, so that a wrong folder is told at once
    failed = []
    for number, run in enumerate(runs, 1):
        kept = records[run]
        record = records[run] = kept or run.make(runner)
        state = "kept" if kept else "finished" if record["finished"] else "FAILED"
        print(f"[{number}/{len(runs)}] {run.method.entry}, seed {run.seed}: {state}", flush=True)
        if not record["finished"]:
            failed.append(run)
    rows = [
        aggregate(method, [r for run, r in records.items() if run.method == method and r and r["finished"]])
        for method in methods
    ]
    packages = ("hf-rat", "torch", "transformers", "accelerate", "datasets")
    versions = {"python": platform.python_version(), **{name: version(name) for name in packages}}
    write_json(output / "results.json", {"command": command, "versions": versions, "methods": rows})
    text = table(rows, command)
    (output / "table.md").write_text(text, encoding="utf-8")
    print(text.split("\n\n")[0])
    if failed:
        logs = ", ".join(str(run.log) for run in failed)
        raise ValueError(f"{len(failed)} of {len(runs)} runs failed, see {logs}")
