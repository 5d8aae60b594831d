"""predict_results_<task>.txt: what a run answered a test split with, by the names of the data set's labels.

A third column is the spread of answers that are averaged over several passes.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

from hf_rat.data.task import HeldOut, Task

_HEADER = "index\tprediction"
_SPREAD = "\tspread"


def predictions_name(task: Task, held_out: HeldOut) -> str:
    """The file's name: predict_results_mnli-mm.txt of MNLI's second test split."""
    parts = [task.name.replace("/", "-"), *([held_out.suffix] if held_out.suffix else [])]
    return f"predict_results_{'-'.join(parts)}.txt"


def write_predictions(
    path: Path,
    values: Sequence[float] | Sequence[Sequence[int]],
    names: Sequence[str] | None,
    spread: Sequence[float] | None = None,
) -> None:
    """Write the answers to one test split, a line for each row, in the order of the split.

    Args:
        path: the file; its folder is made if need be.
        values: class numbers of the data set, or for regression the numbers themselves; of rows whose words have a tag
            each, a list of class numbers, written between spaces.
        names: of the classes; None for regression.
        spread: of each answer; None: there is no such column.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    answers = [_told(value, names) for value in values]
    header = _HEADER
    if spread is not None:
        header += _SPREAD
        answers = [f"{answer}\t{number:.6g}" for answer, number in zip(answers, spread, strict=True)]
    lines = [header, *(f"{index}\t{text}" for index, text in enumerate(answers))]
    path.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")


def _told(value: float | Sequence[int], names: Sequence[str] | None) -> str:
    if names is None:
        return f"{value:.3f}"
    return " ".join(names[int(number)] for number in (value if isinstance(value, Sequence) else (value,)))


def read_predictions(path: Path, task: Task) -> list[float]:
    """The answers of such a file: class numbers of the data set, or for regression the numbers themselves.

    Args:
        path: the file.
        task: the row of its data set.

    Raises:
        ValueError: the file is not one of ours, or answers what the task does not know; file and line are named.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} cannot be read ({error})") from None
    lines = text.splitlines()
    columns = {_HEADER: 2, _HEADER + _SPREAD: 3}.get(lines[0] if lines else "")
    if columns is None or not text.endswith("\n"):
        raise ValueError(f"{path} is no whole file of predictions: its run did not come to an end")
    numbers = {name: number for number, name in enumerate(task.labels)}
    values: list[float] = []
    for index, line in enumerate(lines[1:]):
        where, _, answer = line.partition("\t")
        if columns == 3:
            answer, _, number = answer.rpartition("\t")
            if _number(number) is None:
                raise ValueError(f"{path}, line {index + 2}: {number!r} is not a number")
        if where != str(index):
            raise ValueError(f"{path}, line {index + 2}: the index is {where!r}, it must be {index}")
        value = _number(answer) if task.regression else numbers.get(answer)
        if value is None:
            kind = "a number" if task.regression else f"a label of {task.name} ({', '.join(task.labels[:3])}, ...)"
            raise ValueError(f"{path}, line {index + 2}: {answer!r} is not {kind}")
        values.append(value)
    return values


def _number(text: str) -> float | None:
    try:
        value = float(text)
    except ValueError:
        return None
    return value if math.isfinite(value) else None
