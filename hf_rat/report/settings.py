"""How what a report shows was made: the exact commands, versions of packages, the commit."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from hf_rat.experiments.command_lines import shortened
from hf_rat.experiments.records import Record, former
from hf_rat.experiments.telling import state, versions_of
from hf_rat.experiments.verdict import Verdict
from hf_rat.report.folders import Contents, SingleRun


@dataclass(frozen=True)
class Settings:
    """How it was made.

    Args:
        commands: title -> lines of bash.
        versions: package -> its version in the runs; several where they differ.
        commits: of the source that the runs were made with.
    """

    commands: Mapping[str, Sequence[str]]
    versions: Mapping[str, str]
    commits: Sequence[str]


def settings(contents: Contents, verdict: Verdict | None, told_by: str) -> Settings:
    """What the records tell.

    Args:
        contents: what was read.
        verdict: of the comparisons; None where there is none.
        told_by: the command line of the report.
    """
    commands: dict[str, Sequence[str]] = {}
    if verdict is not None:
        made = [line for told in former(contents.comparisons) for line in _lines(told["command"])]
        if made:
            commands["The comparison"] = made
        for cell in verdict.cells:
            runs = [(row.method, seed, one.command) for row in cell.rows for seed, one in row.records.items()]
            commands[f"Its runs on {cell.name}" if cell.name else "Its runs"] = shortened(runs)
    commands["This page"] = [told_by]
    return Settings(commands, versions_of(contents.records), _commits(contents.records))


def settings_of_run(run: SingleRun) -> dict[str, str]:
    """What the state of a single run tells: the regularizer, steps, epochs, rows of a batch."""
    told: Any = run.state.get("stateful_callbacks") or {}
    ours = (told.get("hf_rat") or {}).get("attributes") or {}
    known = {
        "regularizer": ours.get("regularizer"),
        "optimizer steps": run.state.get("global_step"),
        "epochs": run.state.get("epoch"),
        "rows of a batch": run.state.get("train_batch_size"),
    }
    return {name: f"{value:g}" if isinstance(value, float) else str(value) for name, value in known.items() if value}


def _commits(records: Sequence[Record]) -> list[str]:
    return list(dict.fromkeys(state(git) for record in records if (git := record.told.get("git")) is not None))


def _lines(told: str | list[str]) -> list[str]:
    return [told] if isinstance(told, str) else told
