"""Files for the leaderboards, one per test split, and the zip of them.

GLUE takes tab-separated files, and its whole set only. CLUE takes a JSON object per line, and any of its tasks alone.
"""

from __future__ import annotations

import json
import math
import os
import zipfile
from collections.abc import Collection, Sequence
from pathlib import Path

from hf_rat.data.task import HeldOut, Task
from hf_rat.data.tasks import CLUE, GLUE

HEADER = "index\tprediction"
ARCHIVE = "submission.zip"
LEADERBOARDS = {"glue": GLUE, "clue": CLUE}
FILES: dict[str, tuple[Task, HeldOut]] = {
    held_out.file: (task, held_out) for task in (*GLUE, *CLUE) for held_out in task.test if held_out.file is not None
}
_CLUE_FILES = {name for name, (task, _) in FILES.items() if task in CLUE}


def answer(task: Task, value: float) -> str:
    """One prediction as the leaderboard writes it.

    Args:
        task: the row of the data set.
        value: a class number of the data set, or for regression any number, which is clipped to the task's bounds.
    """
    if task.regression:
        low, high = task.bounds if task.bounds is not None else (-math.inf, math.inf)
        return f"{min(max(low, float(value)), high):.3f}"  # in this order -0.0 becomes 0.000
    return task.labels[int(value)] if task.submit_names else str(int(value))


def write_answers(directory: Path, task: Task, held_out: HeldOut, values: Sequence[float]) -> Path:
    """Write the predictions of one test split, in the order of that split, and return the file.

    Args:
        directory: created when missing.
        task: the row of the data set.
        held_out: the test split, which names the file.
        values: one class number (or number, for regression) per test row.

    Raises:
        ValueError: no leaderboard takes this split, or a prediction is not a finite number.
    """
    if held_out.file is None:
        raise ValueError(f"submission_dir: task {task.name!r} has no leaderboard file for its split {held_out.split}")
    for index, value in enumerate(values):
        if not math.isfinite(value):
            raise ValueError(f"submission_dir: prediction {index} of {task.name} is {value}, not a finite number")
    directory.mkdir(parents=True, exist_ok=True)
    path = directory / held_out.file
    answers = enumerate(answer(task, value) for value in values)
    if path.suffix == ".json":
        lines = [json.dumps({"id": index, "label": text}) for index, text in answers]
    else:
        lines = [HEADER, *(f"{index}\t{text}" for index, text in answers)]
    unfinished = path.with_name(f".{path.name}.unfinished")
    with unfinished.open("w", encoding="utf-8", newline="\n") as file:
        file.writelines(f"{line}\n" for line in lines)
    os.replace(unfinished, path)
    return path


def _missing(names: Collection[str]) -> list[str]:
    """What of a set is not there: GLUE's is required as a whole, unless there are files for CLUE alone."""
    found = FILES.keys() & set(names)
    return [] if found and found <= _CLUE_FILES else [name for name in FILES if name not in {*found, *_CLUE_FILES}]


def missing_files(directory: Path) -> list[str]:
    """Names of the leaderboard's files that are not in `directory`."""
    return _missing([file.name for file in directory.iterdir()] if directory.is_dir() else [])


def _allowed(task: Task, text: str) -> bool:
    if not task.regression:
        return text in (task.labels if task.submit_names else map(str, range(len(task.labels))))
    low, high = task.bounds if task.bounds is not None else (-math.inf, math.inf)
    try:
        return low <= float(text) <= high
    except ValueError:
        return False


def _problem(name: str, content: bytes) -> str | None:
    """The first thing wrong with one file, or None."""
    task, held_out = FILES[name]
    try:
        lines = content.decode("utf-8").splitlines()
    except UnicodeDecodeError as error:
        return f"{name}: not UTF-8 text ({error.reason} at byte {error.start})"
    if name in _CLUE_FILES:
        return _json_problem(name, lines)
    if not lines or lines[0] != HEADER:
        return f"{name}: the header is {lines[0] if lines else ''!r}, it must be {HEADER!r}"
    for index, line in enumerate(lines[1:]):
        fields = line.split("\t")
        if len(fields) != 2:
            return f"{name}: line {index + 2} has {len(fields)} columns, it must have 2"
        if fields[0] != str(index):
            return f"{name}: line {index + 2} has index {fields[0]!r}, it must be {index}"
        if not _allowed(task, fields[1]):
            kind = "a number within the task's bounds" if task.regression else "one of the task's labels"
            return f"{name}: line {index + 2} predicts {fields[1]!r}, which is not {kind}"
    if len(lines) - 1 != held_out.rows:
        return f"{name}: {len(lines) - 1} predictions, the leaderboard expects {held_out.rows}"
    return None


def _json_problem(name: str, lines: list[str]) -> str | None:
    """The same for a file of CLUE, which reads the labels in the order of the lines."""
    task, held_out = FILES[name]
    for index, line in enumerate(lines):
        try:
            row = json.loads(line)
        except ValueError:
            return f"{name}: line {index + 1} is not JSON"
        if not isinstance(row, dict) or not {"id", "label"} <= set(row):
            return f"{name}: line {index + 1} is not an object with id and label"
        if str(row["id"]) != str(index):
            return f"{name}: line {index + 1} has id {row['id']!r}, it must be {index}"
        if row["label"] not in task.labels:
            return f"{name}: line {index + 1} predicts {row['label']!r}, which is not one of the task's labels"
    if len(lines) != held_out.rows:
        return f"{name}: {len(lines)} predictions, the leaderboard expects {held_out.rows}"
    return None


def problems(path: Path) -> list[str]:
    """Everything the leaderboard would refuse, one line each; an empty list means the submission is good.

    Args:
        path: a folder of submission files, or the zip made of them. Other files in the folder are not looked at; the
            zip must hold the files at its top level and nothing else.

    Raises:
        ValueError: `path` is neither a folder nor a zip archive.
    """
    if path.is_dir():
        names = [file.name for file in path.iterdir()]
        found = {name: (path / name).read_bytes() for name in FILES if name in names}
        strange: list[str] = []
    elif zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as archive:
            strange = [f"{name}: not a file of the submission" for name in archive.namelist() if name not in FILES]
            found = {name: archive.read(name) for name in archive.namelist() if name in FILES}
    else:
        raise ValueError(f"submission {str(path)!r} is neither a folder nor a zip archive")
    other = _CLUE_FILES & found.keys()
    if other and len(other) < len(found):
        strange += [f"{name}: a file of CLUE among those of GLUE" for name in sorted(other)]
    wrong = [problem for name, content in found.items() if (problem := _problem(name, content)) is not None]
    return [f"{name}: missing" for name in _missing(found)] + strange + wrong


def pack(directory: Path) -> Path | None:
    """Write `submission.zip` into `directory` when its files are complete and right; None when they are not."""
    if problems(directory):
        return None
    path = directory / ARCHIVE
    unfinished = path.with_name(f".{path.name}.unfinished")
    with zipfile.ZipFile(unfinished, "w", zipfile.ZIP_DEFLATED) as archive:
        for name in (name for name in FILES if (directory / name).is_file()):
            archive.write(directory / name, arcname=name)
    os.replace(unfinished, path)
    return path


def submission_state(directory: Path) -> str:
    """Pack the submission when it is complete, and say in a line what there is or what is missing."""
    archive = pack(directory)
    if archive is not None:
        return f"Submission: {archive} is complete"
    missing = missing_files(directory)
    wrong = [problem for problem in problems(directory) if not problem.endswith(": missing")]
    parts = [f"still missing {', '.join(missing)}"] if missing else []
    parts += [f"not acceptable: {'; '.join(wrong)}"] if wrong else []
    return f"Submission: {directory}: {'; '.join(parts)}"
