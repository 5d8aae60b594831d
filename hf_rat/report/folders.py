"""What the folders that a report is asked for hold: comparisons, single runs, and what `hf-rat analyze` wrote."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hf_rat.experiments.records import Record, names_apart, read

ANALYSES = ("robustness", "calibration", "gap", "landscape")
"""What a report shows of `hf-rat analyze`: the name of the file without .json."""
STATE = "trainer_state.json"


@dataclass(frozen=True)
class SingleRun:
    """A run that belongs to no comparison.

    Args:
        name: what tells its folder from those of the other single runs.
        folder: of the run.
        results: its all_results.json; empty where it has none.
        state: its trainer_state.json; empty where it has none.
    """

    name: str
    folder: Path
    results: Mapping[str, Any]
    state: Mapping[str, Any]


@dataclass(frozen=True)
class Analysis:
    """A file of `hf-rat analyze`.

    Args:
        kind: one of `ANALYSES`.
        path: of the file.
        told: what it holds.
    """

    kind: str
    path: Path
    told: Mapping[str, Any]


@dataclass(frozen=True)
class Contents:
    """Everything that a report is made of.

    Args:
        comparisons: folders of comparisons, as they were given.
        records: the runs in them.
        runs: single ones.
        analyses: in the order of the folders.
    """

    comparisons: Sequence[Path]
    records: Sequence[Record]
    runs: Sequence[SingleRun]
    analyses: Sequence[Analysis]


def look_into(folders: Sequence[Path]) -> Contents:
    """Read the folders.

    Args:
        folders: each that of a comparison, of a single run, or one where `hf-rat analyze` wrote (it may be one of the
            former, too).

    Raises:
        ValueError: a folder is none of these, or a file in it is cut short.
    """
    comparisons, runs, analyses = [], [], []
    for folder in folders:
        if not folder.is_dir():
            raise ValueError(f"{folder} is no folder of runs: {'a file' if folder.exists() else 'not there'}")
        found = [Analysis(kind, path, _read(path)) for kind in ANALYSES if (path := folder / f"{kind}.json").is_file()]
        analyses += found
        if (folder / "all_results.json").is_file() or (folder / STATE).is_file():
            runs.append(folder)
        elif not found or _holds_records(folder):
            comparisons.append(folder)
    records = _records(comparisons)
    names = names_apart(runs) if len(runs) > 1 else [folder.resolve().name for folder in runs]
    singles = [
        SingleRun(name, folder, _read(folder / "all_results.json"), state_of(folder))
        for name, folder in zip(names, runs, strict=True)
    ]
    return Contents(comparisons, records, singles, analyses)


def state_of(folder: Path) -> Mapping[str, Any]:
    """The trainer_state.json of a run's folder; empty where it has none.

    Raises:
        ValueError: it is cut short.
    """
    return _read(folder / STATE)


def _holds_records(folder: Path) -> bool:
    return any(next(folder.glob(f"{depth}seed-*.json"), None) for depth in ("*/", "*/*/", "*/*/*/"))


def _records(folders: Sequence[Path]) -> Sequence[Record]:
    if not folders:
        return []
    try:
        return read(folders)
    except ValueError as error:
        if len(folders) == 1 and str(error) == f"{folders[0]} holds no run of hf-rat compare":
            names = ", ".join(f"{kind}.json" for kind in ANALYSES)
            raise ValueError(
                f"{error}, no all_results.json or {STATE} of a single run, and none of {names} of hf-rat analyze"
            ) from None
        raise


def _read(path: Path) -> dict[str, Any]:
    if not path.is_file():
        return {}
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ValueError(f"{path} is cut short or cannot be read ({error})") from None
    if not isinstance(value, dict):
        raise ValueError(f"{path} holds a {type(value).__name__}, where an object is expected")
    return value
