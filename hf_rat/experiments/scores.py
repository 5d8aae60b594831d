"""What a run on held-back rows scored."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import mean
from typing import Any

from hf_rat.data.metrics import LOWER_IS_BETTER
from hf_rat.experiments.records import Record, bare, metric_of, usual_score


def score_of(record: Mapping[str, Any], asked: str | None) -> tuple[str, float] | None:
    """Name and value of the score of a run on held-back rows; None if it failed or its score is no finite number.

    Args:
        record: of the run.
        asked: name of the score without eval_; None takes the first that is no loss and not of the training rows.

    Raises:
        ValueError: the run does not have that score.
    """
    told = _told(record)
    names = [name for name in told.scores if name.startswith("eval_")]
    if not names:
        return None
    if asked is None:
        name = usual_score(names)
    elif f"eval_{asked}" in names:
        name = f"eval_{asked}"
    else:
        raise ValueError(f"--score {asked}: no run has it; there are: {', '.join(map(bare, names))}")
    value = told.number(name)
    return None if value is None else (name, value)


def sign_of(name: str) -> int:
    """1 where more of a score is better, -1 where less is."""
    return -1 if metric_of(name)[0] in LOWER_IS_BETTER else 1


def mean_scores(records: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """Name -> mean over runs, of every score on held-back rows that all of them have."""
    told = [_told(record) for record in records]
    names = [name for name in told[0].scores if all(one.number(name) is not None for one in told)]
    return {name: mean(float(one.results[name]) for one in told) for name in names}


def _told(record: Mapping[str, Any]) -> Record:
    return Record("", str(record["method"]), int(record["seed"]), Path(), record, {})
