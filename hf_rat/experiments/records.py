"""The runs that lie in folders of `hf-rat compare`: what each record says, and which cell it belongs to.

A cell is one data set with one model, a record one run of a method with a seed in a cell. A comparison over data sets
or models has a folder for each of them above those of the methods; an older one has neither, and is one cell.
"""

from __future__ import annotations

import json
import math
import re
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from hf_rat.data.metrics import METRICS, OF_LOSS

# Entries of all_results.json that begin so (the name of a split may follow) are no scores.
_NO_SCORES = re.compile(r"(eval|test)_(runtime|samples|steps_per_second|model_preparation_time)")
# Where a method's folder may lie: in that of the comparison, of a data set or a model, of a model in a data set.
_DEPTHS = ("*", "*/*", "*/*/*")
_METRICS = (*METRICS, *OF_LOSS, "combined_score", "loss")


@dataclass(frozen=True)
class Record:
    """One run, as its JSON file tells it.

    Args:
        cell: data set and model, as tables call them; empty where there is but one.
        method: as tables call it: the entry of --methods, or the label of a control.
        seed: of the run.
        path: the JSON file.
        told: what it holds.
        versions: package -> version: the record's own, or those that the comparison's results.json has.
    """

    cell: str
    method: str
    seed: int
    path: Path
    told: Mapping[str, Any]
    versions: Mapping[str, str]

    @property
    def finished(self) -> bool:
        return bool(self.told["finished"])

    @property
    def command(self) -> str:
        return str(self.told["command"])

    @property
    def results(self) -> Mapping[str, Any]:
        """What the run measured, as in its all_results.json; empty if it has not finished."""
        return self.told["results"] if self.finished else {}

    def number(self, name: str) -> float | None:
        """What `results` has under a name; None if there is nothing or no finite number."""
        value = self.results.get(name)
        return float(value) if isinstance(value, (int, float)) and math.isfinite(value) else None

    @property
    def scores(self) -> list[str]:
        """Names of its scores, eval_ or test_ in front, in the order of its results."""
        return scores_in(self.results)

    @cached_property
    def search(self) -> Mapping[str, Any] | None:
        """What the search for this method's arguments tells, if there was one.

        Raises:
            ValueError: the file is cut short.
        """
        path = self.path.with_name("search.json")
        return _read(path, ("trials",)) if path.is_file() else None

    def predictions(self, name: str) -> tuple[np.ndarray, np.ndarray] | None:
        """What was predicted and what is right on the split of a score, each (rows,); None where they were not kept.

        Args:
            name: of the score, as in `results`: test_accuracy, eval_accuracy_mm.

        Raises:
            ValueError: the file is cut short.
        """
        split, (_, suffix) = name.partition("_")[0], metric_of(name)
        path = self.path.with_suffix("") / f"{split}_predictions{suffix and '_'}{suffix}.npz"
        if not path.is_file():
            return None
        try:
            with np.load(path, allow_pickle=False) as arrays:
                return arrays["predicted"], arrays["expected"]
        except (OSError, EOFError, KeyError, ValueError, zipfile.BadZipFile) as error:
            raise ValueError(f"{path} is cut short or holds no predictions ({error})") from None


def scores_in(results: Mapping[str, Any]) -> list[str]:
    """Names of the scores in an all_results.json, eval_ or test_ in front, in its order."""
    return [
        name
        for name, value in results.items()
        if name.startswith(("eval_", "test_")) and not _NO_SCORES.match(name) and isinstance(value, (int, float))
    ]


def bare(name: str) -> str:
    """The name of a score without the eval_ or test_ in front."""
    return name.removeprefix("test_").removeprefix("eval_")


def metric_of(name: str) -> tuple[str, str]:
    """The metric of a score and the suffix of its split: eval_accuracy_mm is accuracy of the split mm."""
    score = bare(name)
    for metric in sorted(_METRICS, key=len, reverse=True):
        if score == metric or score.startswith(f"{metric}_"):
            return metric, score[len(metric) + 1 :]
    return score, ""


def usual_score(names: Sequence[str]) -> str:
    """The score that counts where none is asked for: the first that is no loss and not of the training rows."""
    scores = [name for name in names if metric_of(name)[1] != "train"]
    return next((name for name in scores if metric_of(name)[0] != "loss"), (scores or names)[0])


def read(folders: Sequence[Path]) -> list[Record]:
    """Every record in the folders: folder by folder, the methods in the order of the table that lies there.

    Args:
        folders: output folders of `hf-rat compare`, or a data set's or a model's folder in one. Several are one cell
            each, or more if they have data sets or models in them; they are called by what tells their paths apart.

    Raises:
        ValueError: a folder is none, or holds no run; a record is cut short; two are of the same run.
    """
    folders = [Path(folder) for folder in folders]
    names = names_apart(folders) if len(folders) > 1 else [""]
    found = [record for folder, name in zip(folders, names, strict=True) for record in _records(folder, name)]
    by_cell(found)
    return found


def by_cell(records: Sequence[Record]) -> dict[str, dict[str, dict[int, Record]]]:
    """cell -> method -> seed -> record, in the order of the records.

    Raises:
        ValueError: two records have the same cell, method and seed.
    """
    cells: dict[str, dict[str, dict[int, Record]]] = {}
    for record in records:
        seeds = cells.setdefault(record.cell, {}).setdefault(record.method, {})
        if record.seed in seeds:
            raise ValueError(
                f"{seeds[record.seed].path} and {record.path} are both {record.method} with seed {record.seed}"
                f"{f' on {record.cell}' if record.cell else ''}"
            )
        seeds[record.seed] = record
    return cells


def alike(records: Sequence[Record], rows: Mapping[str, Sequence[str]]) -> list[Record]:
    """The records with some methods under one name, so that they are one row over cells.

    Args:
        records: any.
        rows: name -> the methods that it stands for.

    Raises:
        ValueError: no record is of one of these methods, or two of them are in one cell.
    """
    called = {method: name for name, methods in rows.items() for method in methods}
    known = list(dict.fromkeys(record.method for record in records))
    for method in called:
        if method not in known:
            raise ValueError(f"--alike: no run is of the method {method!r}; there are: {', '.join(known)}")
    found = [replace(record, method=called.get(record.method, record.method)) for record in records]
    by_cell(found)
    return found


def rows_alike(given: Sequence[Sequence[str]]) -> dict[str, list[str]]:
    """The values of --alike, each a name and the methods that it stands for, as `alike` takes them.

    Raises:
        ValueError: a name stands for no method.
    """
    rows: dict[str, list[str]] = {}
    for name, *methods in given:
        if not methods:
            raise ValueError(f"--alike {name}: name the methods that it stands for, too")
        rows.setdefault(name, []).extend(methods)
    return rows


def former(folders: Sequence[Path]) -> list[dict[str, Any]]:
    """What the results.json of each folder says, where there is one.

    Raises:
        ValueError: it is cut short.
    """
    paths = [Path(folder) / "results.json" for folder in folders]
    return [_read(path, ("command", "methods")) for path in paths if path.is_file()]


def _records(folder: Path, name: str) -> list[Record]:
    if not folder.is_dir():
        raise ValueError(f"{folder} is no folder of hf-rat compare: {'a file' if folder.exists() else 'not there'}")
    if (folder / "all_results.json").is_file():
        raise ValueError(f"{folder} is a single run; give the folder of the whole comparison, {folder.parent.parent}")
    below = []
    for depth, pattern in enumerate(_DEPTHS):
        paths = [path for path in folder.glob(f"{pattern}/seed-*.json") if re.search(r"seed--?\d+\.json$", path.name)]
        told = {path: _read(path, ("method", "seed", "command", "finished")) for path in sorted(paths)}
        # What lies deeper than the record's data set and model ask for belongs to another comparison.
        own = {path: one for path, one in told.items() if depth <= len(_axes(one))}
        below += [path for path in told if path not in own]
        if own:
            break
    else:
        hint = (
            f"; there are runs in {', '.join(sorted({str(path.parents[1]) for path in below})[:3])}" if below else ""
        )
        raise ValueError(f"{folder} holds no run of hf-rat compare{hint}")
    [before] = former([folder]) or [{}]
    order = list(dict.fromkeys(row["method"] for row in before.get("methods", ())))
    records = []
    for path, one in own.items():
        cell = ", ".join([*([name] if name else []), *_axes(one)])
        method = one.get("label") or one["method"]
        versions = one.get("versions") or before.get("versions") or {}
        records.append(Record(cell, method, int(one["seed"]), path, one, versions))
    order += sorted({record.method for record in records} - set(order))
    return sorted(records, key=lambda record: (record.cell, order.index(record.method), record.seed))


def _axes(told: Mapping[str, Any]) -> list[str]:
    return [str(told[axis]) for axis in ("dataset", "model") if told.get(axis) is not None]


def names_apart(folders: Sequence[Path]) -> list[str]:
    """What tells the paths of folders apart: their parts without those that all of them begin or end with.

    Raises:
        ValueError: a folder is named twice.
    """
    parts = [path.resolve().parts for path in folders]
    if len(set(parts)) < len(parts):
        twice = next(folder for folder, one in zip(folders, parts, strict=True) if parts.count(one) > 1)
        raise ValueError(f"{twice} is named twice")
    shortest = min(map(len, parts))
    first = next((at for at in range(shortest) if len({one[at] for one in parts}) > 1), shortest - 1)
    last = next((at for at in range(shortest - first) if len({one[-1 - at] for one in parts}) > 1), 0)
    return ["/".join(one[first : len(one) - last]) for one in parts]


def _read(path: Path, keys: Sequence[str]) -> dict[str, Any]:
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ValueError(f"{path} is cut short or cannot be read ({error})") from None
    missing = [key for key in keys if not isinstance(value, dict) or key not in value]
    if missing:
        raise ValueError(f"{path} is not what hf-rat compare writes: it has no {', '.join(missing)}")
    if value.get("finished") and not isinstance(value.get("results"), dict):
        raise ValueError(f"{path} is cut short: the run has finished, but its results are not there")
    return value
