"""What a method gains over seeds and examples, from the predictions that its runs kept."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np

from hf_rat.data.metrics import METRICS, scores_of
from hf_rat.experiments.crossed import CrossedDifference, crossed_difference, pseudo_values
from hf_rat.experiments.records import Record, metric_of


def gain_over_examples(
    runs: Mapping[int, Record], baseline: Mapping[int, Record], score: str, notes: list[str]
) -> CrossedDifference | None:
    """What a method gains over the baseline for test sets like this one.

    Args:
        runs, baseline: seed -> run, of the method and of the baseline.
        score: name of the score, eval_ or test_ in front.
        notes: gets a line if predictions are there and cannot be used.

    Returns:
        None where they were not kept, or do not suffice for the score, as for a loss.

    Raises:
        ValueError: a file of predictions is cut short.
    """
    shared = [
        seed
        for seed in runs
        if seed in baseline and None not in (runs[seed].number(score), baseline[seed].number(score))
    ]
    sides, answers = [], None
    for side in (runs, baseline):
        found = [side[seed].predictions(score) for seed in shared]
        kept = [one for one in found if one is not None]
        if len(kept) < len(found):
            if kept:
                notes.append(f"{side[shared[0]].method}: predictions of {len(kept)} of {len(found)} runs are there")
            return None
        expected = kept[0][1] if answers is None else answers
        if any(not np.array_equal(one[1], expected) for one in kept):
            notes.append(
                f"{side[shared[0]].method}: its runs answered other examples than the rest; no second interval"
            )
            return None
        answers = expected
        predicted = np.stack([one[0] for one in kept])
        measure = _measure(side[shared[0]], score)
        if measure is None:
            return None
        for seed, row in zip(shared, predicted, strict=True):
            if abs(measure(row, expected) - side[seed].results[score]) > 1e-6:
                notes.append(f"the predictions of {side[seed].path.with_suffix('')} do not give its score; left out")
                return None
        if metric_of(score)[0] == "accuracy":
            sides.append((predicted == expected).astype(np.float64))
        elif metric_of(score)[0] == "mse":
            sides.append(-np.square(predicted - expected))
        else:
            sides.append(pseudo_values(measure, predicted, expected))
    return crossed_difference(*sides)


def _measure(record: Record, score: str) -> Callable[[np.ndarray, np.ndarray], float] | None:
    """The score as a function of predictions and labels; None where they do not suffice, as for a loss."""
    metric, suffix = metric_of(score)
    split = score.partition("_")[0]
    if metric in METRICS:
        return METRICS[metric]
    parts = [metric_of(name)[0] for name in record.scores if name.startswith(split) and metric_of(name)[1] == suffix]
    names = [name for name in parts if name in METRICS]
    if metric != "combined_score" or not names:
        return None
    return lambda predicted, expected: scores_of(names, predicted, expected)["combined_score"]
